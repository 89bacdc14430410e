package pickerwatch

import "github.com/prometheus/client_golang/prometheus"

// Withdrawn counts the pickers that were withdrawn.
func Withdrawn() prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{
		Name: "inference_waypoint_pickers_withdrawn_total",
		Help: "Pickers that the controller took out of their Service because their node did not answer, since the controller's start.",
	})
}
