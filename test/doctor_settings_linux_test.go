package test

var settingConditions = []condition{}
