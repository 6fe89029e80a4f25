package test

var resetConditions = []condition{}
