package test

var listenerConditions = []condition{}
