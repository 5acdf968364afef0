module github.com/retell-resilience/resilience/store/bbolt

go 1.25.0

replace (
	github.com/retell-resilience/resilience => ../..
	github.com/retell-resilience/resilience/storetest => ../../storetest
)

require (
	github.com/retell-resilience/resilience v0.0.0-00010101000000-000000000000
	github.com/retell-resilience/resilience/storetest v0.0.0-00010101000000-000000000000
	github.com/stretchr/testify v1.12.1
	go.etcd.io/bbolt v1.5.0
)

require (
	github.com/anishathalye/porcupine v1.3.1 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/sony/gobreaker/v2 v2.4.0 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/sync v0.22.0 // indirect
	golang.org/x/sys v0.45.0 // indirect
)
