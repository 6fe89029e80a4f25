package doctor

var resetRules = []*Rule{}
