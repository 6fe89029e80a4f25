package test

var closingConditions = []condition{}
