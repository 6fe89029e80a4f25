package test

var memoryConditions = []condition{}
