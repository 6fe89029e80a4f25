package doctor

var closingRules = []*Rule{}
