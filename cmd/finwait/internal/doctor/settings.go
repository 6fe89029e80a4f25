package doctor

var settingRules = []*Rule{}
