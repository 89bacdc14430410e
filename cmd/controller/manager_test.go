package main

import (
	"net/http/httptest"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/cache/informertest"
)

// TestCachesFilled is ready once the caches are filled, and not before.
func TestCachesFilled(t *testing.T) {
	for _, filled := range []bool{false, true} {
		check := cachesFilled(&informertest.FakeInformers{Synced: &filled})
		if err := check(httptest.NewRequest("GET", "/readyz", nil)); (err == nil) != filled {
			t.Errorf("filled %t: %v", filled, err)
		}
	}
}
