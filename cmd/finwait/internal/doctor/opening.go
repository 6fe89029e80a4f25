package doctor

var openingRules = []*Rule{}
