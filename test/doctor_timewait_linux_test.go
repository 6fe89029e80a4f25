package test

var timeWaitConditions = []condition{}
