package test

var conntrackConditions = []condition{}
