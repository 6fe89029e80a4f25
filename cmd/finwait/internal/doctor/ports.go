package doctor

var portRules = []*Rule{}
