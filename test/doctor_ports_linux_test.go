package test

var portConditions = []condition{}
