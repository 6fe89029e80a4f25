package test

var openingConditions = []condition{}
