package translate

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// accessName is the AuthorizationPolicy that admits waypoints to our picker.
const accessName = "inference-waypoints"

// accountAnnotation names a Gateway's service account if it is not the one that Istio creates.
const accountAnnotation = "networking.istio.io/service-account"

// pickerOwner begins the name of an owner that is a picker. No pool's name has a slash.
const pickerOwner = "picker/"

// PickerOwner is the owner of the objects that the controller makes once for our picker.
func PickerOwner(picker ServicePort) types.NamespacedName {
	return types.NamespacedName{Namespace: picker.Service.Namespace, Name: pickerOwner + picker.Service.Name}
}

// PickerAccess makes the AuthorizationPolicy that admits the waypoints that ask our picker, each by its own identity. A
// service account of the same name in another namespace is not admitted. It is nil if no waypoint asks the picker, or if
// the Service selects no pods.
func PickerAccess(picker ServicePort, service *corev1.Service, waypoints map[types.NamespacedName]*gatewayv1.Gateway) *securityv1.AuthorizationPolicy {
	if len(waypoints) == 0 || service == nil || len(service.Spec.Selector) == 0 {
		return nil
	}
	var principals []string
	for _, name := range sortedNames(waypoints) {
		if principal, ok := principalOf(name, waypoints[name]); ok {
			principals = append(principals, principal)
		}
	}
	if len(principals) == 0 {
		return nil // a source without principals does not mean that nobody is admitted
	}
	return &securityv1.AuthorizationPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: securityv1.SchemeGroupVersion.String(), Kind: "AuthorizationPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: picker.Service.Namespace, Name: accessName},
		Spec: v1beta1.AuthorizationPolicy{
			Selector: &typev1beta1.WorkloadSelector{MatchLabels: service.Spec.Selector},
			Action:   v1beta1.AuthorizationPolicy_ALLOW,
			Rules: []*v1beta1.Rule{{
				From: []*v1beta1.Rule_From{{Source: &v1beta1.Source{Principals: slices.Compact(principals)}}},
				To:   []*v1beta1.Rule_To{{Operation: &v1beta1.Operation{Ports: []string{podPort(picker, service)}}}},
			}},
		},
	}
}

// principalOf is a waypoint's identity in any trust domain; ok is false if the Gateway names an invalid service account.
// One policy admits all waypoints, so a tenant's annotation must not make it too large or invalid.
func principalOf(name types.NamespacedName, gateway *gatewayv1.Gateway) (principal string, ok bool) {
	account := name.Name
	if gateway != nil {
		account = cmp.Or(gateway.Annotations[accountAnnotation], account)
	}
	return fmt.Sprintf("*/ns/%s/sa/%s", name.Namespace, account), len(validation.IsDNS1123Subdomain(account)) == 0
}

// podPort is the port of the picker's pods. If the Service's target port is a name, the Service's port is assumed.
func podPort(picker ServicePort, service *corev1.Service) string {
	for _, p := range service.Spec.Ports {
		if p.Port == picker.Port && p.TargetPort.Type == intstr.Int && p.TargetPort.IntVal > 0 {
			return strconv.Itoa(int(p.TargetPort.IntVal))
		}
	}
	return strconv.Itoa(int(picker.Port))
}

// Asks reports whether the routes of a pool's EnvoyFilter ask a picker, or will ask it soon.
func Asks(annotations map[string]string, picker ServicePort) bool {
	return slices.Contains(listedPickers(annotations), picker.String())
}
