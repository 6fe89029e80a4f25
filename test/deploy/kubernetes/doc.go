// Package kubernetes holds deploy/kubernetes to the types of Kubernetes' own
// modules, which finwait's have no need of.
package kubernetes
