// Package deploy tests what is in deploy/: the packages, the unit, the
// configuration, the container's binary, and through modules of their own (kubernetes
// and test/collector), which need what finwait does not, the Kubernetes manifests and
// the Collector's configuration. systemd.sh boots a machine with systemd for the package.
package deploy
