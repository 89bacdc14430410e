// Package render makes the objects that the controller would write for the InferencePools in files. It must not read a
// cluster. It translates with the controller's own package translate. If a pool depends on an object that no file has, it
// assumes that the object exists, and says so in a note.
package render

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	"istio.io/api/label"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
)

// Options are the settings that files do not have.
type Options struct {
	Settings translate.Settings
	// Namespace is the namespace of objects that name none.
	Namespace string
	// Waypoint serves the pools that the files bind to no waypoint. Without a namespace it is in the pool's namespace.
	Waypoint types.NamespacedName
}

// Output is what the controller would write.
type Output struct {
	Objects []translate.Object
	// Notes name the objects that are assumed to exist.
	Notes []string
	// Refused says why a waypoint would not serve a pool.
	Refused []string
}

// Inputs are the objects of files, with the pools in their order.
type Inputs struct {
	*translate.Objects
	order []types.NamespacedName
	notes []string
}

// ErrNoPool says that the files hold no InferencePool.
var ErrNoPool = errors.New("there is no InferencePool in the files")

// NewInputs makes Inputs without objects.
func NewInputs() *Inputs {
	return &Inputs{Objects: translate.NewObjects()}
}

// Add reads the objects of a YAML stream. An unknown field is an error. Kinds that do not affect pools are ignored, with a
// note.
func (in *Inputs) Add(stream io.Reader, namespace string) error {
	documents := utilyaml.NewYAMLReader(bufio.NewReader(stream))
	for n := 1; ; n++ {
		doc, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading document %d: %w", n, err)
		}
		if len(bytes.TrimSpace(doc)) == 0 {
			continue
		}
		if err := in.document(doc, namespace); err != nil {
			return fmt.Errorf("document %d: %w", n, err)
		}
	}
}

func (in *Inputs) document(doc []byte, namespace string) error {
	var head metav1.TypeMeta
	if err := yaml.Unmarshal(doc, &head); err != nil {
		return err
	}
	switch head.GroupVersionKind().GroupKind().String() {
	case "InferencePool.inference.networking.k8s.io":
		p, err := put(doc, namespace, in.Pools)
		if err == nil {
			in.order = append(in.order, p)
		}
		return err
	case "Namespace":
		ns := &corev1.Namespace{}
		if err := yaml.UnmarshalStrict(doc, ns); err != nil {
			return fmt.Errorf("a Namespace: %w", err)
		}
		in.Namespaces[ns.Name] = ns
		return nil
	case "Gateway.gateway.networking.k8s.io":
		return ignored(put(doc, namespace, in.Gateways))
	case "Service":
		return ignored(put(doc, namespace, in.Services))
	case "HTTPRoute.gateway.networking.k8s.io":
		return ignored(put(doc, namespace, in.HTTPRoutes))
	case "ReferenceGrant.gateway.networking.k8s.io":
		return ignored(put(doc, namespace, in.ReferenceGrants))
	case "ServiceEntry.networking.istio.io":
		return ignored(put(doc, namespace, in.ServiceEntries))
	case "":
		return errors.New("it has no kind")
	default:
		in.notes = append(in.notes, fmt.Sprintf("ignored: a %s does not affect pools", head.Kind))
		return nil
	}
}

func ignored(_ types.NamespacedName, err error) error { return err }

func put[T any, O interface {
	*T
	metav1.Object
}](doc []byte, namespace string, into map[types.NamespacedName]*T) (types.NamespacedName, error) {
	out := O(new(T))
	if err := yaml.UnmarshalStrict(doc, out); err != nil {
		return types.NamespacedName{}, fmt.Errorf("%T: %w", *out, err)
	}
	out.SetNamespace(cmp.Or(out.GetNamespace(), namespace))
	name := types.NamespacedName{Namespace: out.GetNamespace(), Name: out.GetName()}
	if name.Name == "" {
		return name, fmt.Errorf("%T: it has no metadata.name", *out)
	}
	if into[name] != nil {
		return name, fmt.Errorf("%T %s: the files have it twice", *out, name)
	}
	into[name] = out
	return name, nil
}

// Render translates all pools. It adds missing objects to the inputs.
func Render(in *Inputs, o Options) (Output, error) {
	if len(in.order) == 0 {
		return Output{}, ErrNoPool
	}
	c := &completion{in, o}
	for _, name := range in.order {
		c.waypoint(in.Pools[name])
		c.picker(in.Pools[name])
	}
	out := Output{Notes: in.notes}
	for _, name := range in.order {
		one := translate.Translate(name, in, o.Settings)
		out.Objects = append(out.Objects, one.Objects()...)
		for _, parent := range one.Parents {
			if !parent.Accepted.OK() {
				out.Refused = append(out.Refused, fmt.Sprintf("pool %s at waypoint %s: %s", name, parent.Gateway, parent.Accepted.Message))
			}
			if !parent.ResolvedRefs.OK() {
				out.Refused = append(out.Refused, fmt.Sprintf("pool %s at waypoint %s: %s", name, parent.Gateway, parent.ResolvedRefs.Message))
			}
		}
		if len(one.Parents) == 0 {
			out.Refused = append(out.Refused, fmt.Sprintf("pool %s: it is bound to no waypoint", name))
		}
	}
	slices.Sort(out.Notes)
	out.Notes = slices.Compact(out.Notes)
	return out, nil
}

// completion adds missing objects.
type completion struct {
	*Inputs
	Options
}

func (c *completion) note(format string, args ...any) {
	c.notes = append(c.notes, fmt.Sprintf(format, args...))
}

// waypoint binds a pool that the files bind to no waypoint, and makes the waypoint if no file has it.
func (c *completion) waypoint(p *inferencev1.InferencePool) {
	ns := c.Namespaces[p.Namespace]
	if ns == nil {
		ns = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: p.Namespace}}
		c.Namespaces[p.Namespace] = ns
	}
	name, bound := translate.WaypointOf(p, ns)
	use := label.IoIstioUseWaypoint.Name
	if said := p.Labels[use] != "" || ns.Labels[use] != ""; !bound && !said && c.Waypoint.Name != "" {
		name = types.NamespacedName{Namespace: cmp.Or(c.Waypoint.Namespace, p.Namespace), Name: c.Waypoint.Name}
		if p.Labels == nil {
			p.Labels = map[string]string{}
		}
		p.Labels[use], p.Labels[label.IoIstioUseWaypointNamespace.Name] = name.Name, name.Namespace
		bound = true
	}
	if !bound || c.Gateways[name] != nil {
		return
	}
	all := gatewayv1.NamespacesFromAll
	c.Gateways[name] = &gatewayv1.Gateway{
		ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name},
		Spec: gatewayv1.GatewaySpec{
			GatewayClassName: "istio-waypoint",
			Listeners: []gatewayv1.Listener{{
				Name: "mesh", Port: 15008, Protocol: "HBONE",
				AllowedRoutes: &gatewayv1.AllowedRoutes{Namespaces: &gatewayv1.RouteNamespaces{From: &all}},
			}},
		},
	}
	c.note("assumed to exist: waypoint %s, to which pool %s/%s is bound", name, p.Namespace, p.Name)
}

// picker makes the Service of a pool's picker if no file has it.
func (c *completion) picker(p *inferencev1.InferencePool) {
	at, named := translate.PickerOf(p, c.Settings)
	if !named {
		return
	}
	s := c.Services[at.Service]
	if s == nil {
		s = &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: at.Service.Namespace, Name: at.Service.Name}}
		s.Spec.Ports = []corev1.ServicePort{{Port: at.Port}}
		c.Services[at.Service] = s
		c.note("assumed to exist: the picker's Service %s", at)
	}
}
