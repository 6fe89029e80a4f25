package otlp

import (
	"crypto/rand"
	"crypto/sha1"
	"encoding/hex"
	"os"
	"runtime"
	"strings"

	"go.opentelemetry.io/collector/pdata/pcommon"
)

// host is what can be learnt of the machine. What is empty is not known.
type host struct {
	machineID   string
	name        string
	osVersion   string // the kernel's
	description string
}

// thisHost returns it for this one.
func thisHost() host {
	h := host{machineID: readMachineID()}
	h.name, _ = os.Hostname()
	h.osVersion, h.description = kernelVersion()
	return h
}

func readMachineID() string {
	text, err := os.ReadFile("/etc/machine-id")
	id := strings.TrimSpace(string(text))
	if err != nil || len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" {
		return "" // "uninitialized" in an image that was never started
	}
	return id
}

// fromKubernetes are the variables that tell where a pod runs, as its definition
// passes them on from the downward API.
var fromKubernetes = []struct {
	key       string
	variables []string // the first that is set counts
}{
	{"k8s.node.name", []string{"K8S_NODE_NAME", "NODE_NAME"}},
	{"k8s.pod.name", []string{"K8S_POD_NAME", "POD_NAME"}},
	{"k8s.namespace.name", []string{"K8S_NAMESPACE_NAME", "POD_NAMESPACE"}},
	{"k8s.cluster.name", []string{"K8S_CLUSTER_NAME"}},
}

// architectures are those that OpenTelemetry calls otherwise than Go.
var architectures = map[string]string{"386": "x86", "arm": "arm32", "ppc64le": "ppc64"}

// resource returns who sends: the environment's word counts before what is found
// out. The pod of the agent is named, and its uid is not: in a record that is the
// uid of the pod whose process is told of.
func (c *Config) resource(h host, version string, lookup func(string) (string, bool)) []attribute {
	var all []attribute
	add := func(key, value string) {
		if value != "" {
			all = put(all, attribute{key, strings.ToValidUTF8(value, "\uFFFD")})
		}
	}
	arch := runtime.GOARCH
	if name, ok := architectures[arch]; ok {
		arch = name
	}
	add("service.name", "finwait")
	add("service.version", version)
	add("host.name", nodeOr(h.name, lookup))
	add("host.id", h.machineID)
	add("host.arch", arch)
	add("os.type", runtime.GOOS)
	add("os.version", h.osVersion)
	add("os.description", h.description)
	node := ""
	for _, k := range fromKubernetes {
		for _, variable := range k.variables {
			if value, _ := lookup(variable); value != "" {
				add(k.key, value)
				if k.key == "k8s.node.name" {
					node = value
				}
				break
			}
		}
	}
	for _, a := range c.attributes {
		add(a.key, a.value)
	}
	add("service.name", c.service)
	for _, a := range all {
		if a.key == "service.instance.id" {
			return all
		}
	}
	add("service.instance.id", instanceID(h.machineID, node, h.name))
	return all
}

// nodeOr returns the name of the node, if it is known: in a pod the host's own name is
// the pod's.
func nodeOr(name string, lookup func(string) (string, bool)) string {
	for _, k := range fromKubernetes {
		if k.key != "k8s.node.name" {
			continue
		}
		for _, variable := range k.variables {
			if node, _ := lookup(variable); node != "" {
				return node
			}
		}
	}
	return name
}

// instanceID returns a UUID of the first of those that is known. There is one
// agent on a host, so that its id can be the host's: what it tells goes on in the
// same series when it has been started again.
func instanceID(known ...string) string {
	// OpenTelemetry's namespace for such ids: 4d63009a-8d0f-11ee-aad7-4c796ed8e320.
	namespace := []byte{0x4d, 0x63, 0x00, 0x9a, 0x8d, 0x0f, 0x11, 0xee, 0xaa, 0xd7, 0x4c, 0x79, 0x6e, 0xd8, 0xe3, 0x20}
	for _, name := range known {
		if name != "" {
			sum := sha1.Sum(append(namespace, name...))
			return uuid([16]byte(sum[:16]), 5)
		}
	}
	var random [16]byte
	_, _ = rand.Read(random[:]) // which does not fail
	return uuid(random, 4)
}

func uuid(b [16]byte, version byte) string {
	b[6] = b[6]&0x0f | version<<4
	b[8] = b[8]&0x3f | 0x80
	s := hex.EncodeToString(b[:])
	return strings.Join([]string{s[:8], s[8:12], s[12:16], s[16:20], s[20:]}, "-")
}

func setResource(r pcommon.Resource, all []attribute) {
	r.Attributes().EnsureCapacity(len(all))
	for _, a := range all {
		r.Attributes().PutStr(a.key, a.value)
	}
}
