{{- /* What several templates share. */ -}}

{{- define "inference-waypoint.image" -}}
{{ .root.Values.image.repository }}/{{ .program }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- /* Where a Deployment's pods run. */ -}}
{{- define "inference-waypoint.placement" -}}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
{{- toYaml . | nindent 0 }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
{{- toYaml . | nindent 0 }}
{{- end }}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            app.kubernetes.io/name: {{ .name }}
topologySpreadConstraints:
- maxSkew: 1
  topologyKey: topology.kubernetes.io/zone
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      app.kubernetes.io/name: {{ .name }}
  # Without it the pods that a rollout takes away would count.
  matchLabelKeys: [pod-template-hash]
{{- end }}

{{- define "inference-waypoint.clusterRules" -}}
# What a pool's translation reads.
- apiGroups: [inference.networking.k8s.io]
  resources: [inferencepools]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [namespaces, services]
  verbs: [get, list, watch]
- apiGroups: [gateway.networking.k8s.io]
  resources: [grpcroutes, httproutes, referencegrants]
  verbs: [get, list, watch]
# What it writes. Server-side apply needs create and patch.
- apiGroups: [inference.networking.k8s.io]
  resources: [inferencepools/status]
  verbs: [patch]
- apiGroups: [gateway.networking.k8s.io]
  resources: [grpcroutes/status, httproutes/status]
  verbs: [patch]
# The waypoints of labelled namespaces.
- apiGroups: [gateway.networking.k8s.io]
  resources: [gateways]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.istio.io]
  resources: [serviceentries, envoyfilters]
  verbs: [get, list, watch, create, patch, delete]
# Where the counters of waypoints are read, and the pickers. It keeps those with Istio's label gateway.networking.k8s.io/gateway-name
# and those of its own namespace alone.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# What has no effect on calls to pools, and is told.
- apiGroups: [networking.istio.io]
  resources: [virtualservices, destinationrules]
  verbs: [list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{- define "inference-waypoint.leaseRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [inference-waypoint-controller]
  verbs: [get, update]
# The key of pools' tokens, which it makes once.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [inference-picker-key]
  verbs: [get, patch, delete]
# The policy that admits waypoints to the picker.
- apiGroups: [security.istio.io]
  resources: [authorizationpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""] # leader election tells of itself in the older kind of event
  resources: [events]
  verbs: [create, patch]
# A picker whose node has vanished is set to not ready, as Kubernetes does 50 s later.
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
{{- end }}
