package kubernetes

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// manifests is the folder that is held to the types, from here.
const manifests = "../../../deploy/kubernetes"

// kinds are the kinds that may be in it. One that is not is an error: nothing
// would tell whether its fields exist. PodMonitor is the Prometheus operator's,
// and podMonitor has what is used of it.
var kinds = map[string]func() any{
	"v1/Namespace":                        func() any { return &corev1.Namespace{} },
	"v1/ServiceAccount":                   func() any { return &corev1.ServiceAccount{} },
	"v1/ConfigMap":                        func() any { return &corev1.ConfigMap{} },
	"apps/v1/DaemonSet":                   func() any { return &appsv1.DaemonSet{} },
	"scheduling.k8s.io/v1/PriorityClass":  func() any { return &schedulingv1.PriorityClass{} },
	"networking.k8s.io/v1/NetworkPolicy":  func() any { return &networkingv1.NetworkPolicy{} },
	"monitoring.coreos.com/v1/PodMonitor": func() any { return &podMonitor{} },
}

type podMonitor struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		JobLabel            string               `json:"jobLabel"`
		Selector            metav1.LabelSelector `json:"selector"`
		PodMetricsEndpoints []struct {
			Port          string `json:"port"`
			Path          string `json:"path"`
			Interval      string `json:"interval"`
			ScrapeTimeout string `json:"scrapeTimeout"`
			Relabelings   []struct {
				SourceLabels []string `json:"sourceLabels"`
				TargetLabel  string   `json:"targetLabel"`
			} `json:"relabelings"`
		} `json:"podMetricsEndpoints"`
	} `json:"spec"`
}

// decode returns the objects in the folder, each decoded without a field that its
// type does not have, and without one that is there twice.
func decode(t *testing.T) []any {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(manifests, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests in %s: %v", manifests, err)
	}
	var all []any
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
		for {
			document, err := reader.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			object, err := decodeOne(document)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			all = append(all, object)
		}
	}
	return all
}

func decodeOne(document []byte) (any, error) {
	var meta metav1.TypeMeta
	if err := yaml.Unmarshal(document, &meta); err != nil {
		return nil, err
	}
	kind := meta.APIVersion + "/" + meta.Kind
	if kinds[kind] == nil {
		return nil, fmt.Errorf("no type is known for %s", kind)
	}
	object := kinds[kind]()
	if err := yaml.UnmarshalStrict(document, object); err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	return object, nil
}

// find returns the only object of that type.
func find[T any](t *testing.T, objects []any) T {
	t.Helper()
	var found []T
	for _, o := range objects {
		if typed, ok := o.(T); ok {
			found = append(found, typed)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d objects of type %T", len(found), *new(T))
	}
	return found[0]
}

// TestStrict sees that decoding refuses what no type has.
func TestStrict(t *testing.T) {
	const document = "apiVersion: v1\nkind: Namespace\nmetadata: {name: x, nmae: y}\n"
	if _, err := decodeOne([]byte(document)); err == nil || !strings.Contains(err.Error(), "nmae") {
		t.Errorf("a field that does not exist: %v", err)
	}
	if _, err := decodeOne([]byte("apiVersion: v1\nkind: Namespase\n")); err == nil {
		t.Error("a kind that does not exist is taken")
	}
}

// TestManifests decodes all, and sees that they fit together.
func TestManifests(t *testing.T) {
	objects := decode(t)
	ds := find[*appsv1.DaemonSet](t, objects)
	pod := ds.Spec.Template
	account := find[*corev1.ServiceAccount](t, objects)
	namespace := find[*corev1.Namespace](t, objects).Name
	for _, o := range objects {
		meta, ok := o.(metav1.Object)
		if !ok {
			t.Errorf("%T has no metadata", o)
		} else if ns := meta.GetNamespace(); ns != "" && ns != namespace {
			t.Errorf("%T is in %s and not in %s", o, ns, namespace)
		}
	}
	selects := func(what string, selector *metav1.LabelSelector) {
		s, err := metav1.LabelSelectorAsSelector(selector)
		if err != nil || !s.Matches(labels.Set(pod.Labels)) {
			t.Errorf("the %s does not select the pods: %v", what, err)
		}
	}
	selects("DaemonSet", ds.Spec.Selector)
	selects("NetworkPolicy", &find[*networkingv1.NetworkPolicy](t, objects).Spec.PodSelector)
	monitor := find[*podMonitor](t, objects)
	selects("PodMonitor", &monitor.Spec.Selector)
	if pod.Spec.ServiceAccountName != account.Name || account.AutomountServiceAccountToken == nil || *account.AutomountServiceAccountToken {
		t.Error("the account is not the pod's, or has a token")
	}
	if pod.Spec.PriorityClassName != find[*schedulingv1.PriorityClass](t, objects).Name {
		t.Error("the priority class is not the pod's")
	}

	container := pod.Spec.Containers[0]
	ports := map[string]bool{}
	for _, p := range container.Ports {
		ports[p.Name] = true
	}
	for _, p := range []*corev1.Probe{container.StartupProbe, container.ReadinessProbe, container.LivenessProbe} {
		if p == nil || p.HTTPGet == nil || !ports[p.HTTPGet.Port.String()] {
			t.Error("a probe has no port of the container's")
		}
	}
	for _, e := range monitor.Spec.PodMetricsEndpoints {
		if !ports[e.Port] {
			t.Errorf("the PodMonitor's port %q is none of the container's", e.Port)
		}
	}
	checkVolumes(t, &pod.Spec, find[*corev1.ConfigMap](t, objects))
	checkPrivileges(t, &pod.Spec)
}

// checkVolumes sees that each mount has its volume and the other way round, and
// that the file that the arguments name is in the ConfigMap.
func checkVolumes(t *testing.T, pod *corev1.PodSpec, config *corev1.ConfigMap) {
	t.Helper()
	var volumes, mounts []string
	for _, v := range pod.Volumes {
		volumes = append(volumes, v.Name)
		if v.ConfigMap != nil && v.ConfigMap.Name != config.Name {
			t.Errorf("the volume %s is of the ConfigMap %s, and there is %s", v.Name, v.ConfigMap.Name, config.Name)
		}
	}
	for _, m := range pod.Containers[0].VolumeMounts {
		mounts = append(mounts, m.Name)
	}
	slices.Sort(volumes)
	slices.Sort(mounts)
	if !slices.Equal(volumes, mounts) {
		t.Errorf("volumes %v, mounts %v", volumes, mounts)
	}
	args := pod.Containers[0].Args
	file := filepath.Base(args[slices.Index(args, "--config")+1])
	if config.Data[file] == "" {
		t.Errorf("the ConfigMap has no %s", file)
	}
}

// unit is the service that the pod must have the privileges of.
const unit = "../../../deploy/systemd/finwait.service"

// checkPrivileges holds the pod to the capabilities that the unit has, and to
// what it must not have.
func checkPrivileges(t *testing.T, pod *corev1.PodSpec) {
	t.Helper()
	s := pod.Containers[0].SecurityContext
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for line := range strings.Lines(string(text)) {
		if list, ok := strings.CutPrefix(line, "CapabilityBoundingSet="); ok {
			for _, name := range strings.Fields(list) {
				want = append(want, strings.TrimPrefix(name, "CAP_"))
			}
		}
	}
	for _, c := range s.Capabilities.Add {
		got = append(got, string(c))
	}
	slices.Sort(want)
	slices.Sort(got)
	if len(want) == 0 || !slices.Equal(got, want) {
		t.Errorf("the pod has the capabilities %v, the unit %v", got, want)
	}
	switch {
	case !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}):
		t.Error("the pod does not drop all capabilities")
	case s.Privileged != nil && *s.Privileged:
		t.Error("the pod is privileged")
	case s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation:
		t.Error("the pod may gain privileges")
	case s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem:
		t.Error("the pod may write to its root")
	}
}
