package doctor

var conntrackRules = []*Rule{}
