package doctor

var listenerRules = []*Rule{}
