package doctor

var memoryRules = []*Rule{}
