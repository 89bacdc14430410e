package pool

// The labels and annotations of this project. Those that say how a pool picks begin with "pick-", and are listed in package
// picksettings.
const (
	// Prefix starts every label and annotation of this project.
	Prefix = "inference-waypoint.io/"

	// WaypointLabel on a Namespace names a waypoint there that serves the namespace's pools and nothing else. The controller
	// creates the Gateway if none of that name exists.
	WaypointLabel = Prefix + "waypoint"

	// PoolAnnotation on a Service names an InferencePool of the same namespace. The pool's endpoints serve the calls to the
	// Service, instead of the Service's own endpoints.
	PoolAnnotation = Prefix + "pool"

	// HostsAnnotation on an InferencePool lists further hosts of the pool, separated by commas. The whole mesh resolves these
	// hosts, so the administrator sets which hosts a namespace may claim.
	HostsAnnotation = Prefix + "hosts"

	// FailureModeAnnotation on an InferencePool without an endpointPickerRef sets the failure mode for our picker:
	// FailOpen (the default) or FailClose. A pool with an endpointPickerRef sets its failure mode there.
	FailureModeAnnotation = Prefix + "failure-mode"

	// OwnPickerAnnotation with the value "true" on a Service says that the Service is this project's picker. So a pool can name
	// its own instance of our picker in endpointPickerRef. The controller treats a picker as ours if its Service has this
	// annotation, or if it is the default picker.
	OwnPickerAnnotation = Prefix + "picker"
)

// The labels and annotations of objects that the controller makes.
const (
	// OwnedLabel is on every object that the controller made. It neither changes nor deletes an object without it.
	OwnedLabel = Prefix + "owned"

	// OwnerAnnotation names the owner as namespace/name, which may be too long for a label.
	OwnerAnnotation = Prefix + "owner"

	// AskedPickersAnnotation on a pool's EnvoyFilter lists the pickers that its routes ask, or will ask soon, as
	// namespace/service:port, separated by commas. The controller makes a waypoint's EnvoyFilter for pickers from these lists.
	AskedPickersAnnotation = Prefix + "asks"

	// AskedForPeopleAnnotation on an EnvoyFilter tells people which picker the waypoint asks, and how.
	AskedForPeopleAnnotation = Prefix + "picker"

	// NoPodLabel is a label that no pod has, so a selector with it selects no pod.
	NoPodLabel = Prefix + "held"
)
