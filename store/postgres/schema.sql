-- The keys of package pgstore. Only id, version, unsettled, expires and record are read; the others are for people.
CREATE TABLE IF NOT EXISTS resilience_keys (
	id        text COLLATE "C" PRIMARY KEY,
	version   bigint GENERATED ALWAYS AS IDENTITY,
	state     text NOT NULL,
	operation text NOT NULL,
	unsettled boolean NOT NULL,
	expires   timestamptz, -- of a finished record
	record    bytea NOT NULL
) WITH (fillfactor = 70); -- a record is written four times or so: there is room for the next one on its page

CREATE INDEX IF NOT EXISTS resilience_keys_unsettled ON resilience_keys (id) WHERE unsettled;

CREATE INDEX IF NOT EXISTS resilience_keys_expires ON resilience_keys (expires, id) WHERE expires IS NOT NULL;

CREATE TABLE IF NOT EXISTS resilience_keys_letters (
	queue     text NOT NULL, -- of one instance
	id        bytea NOT NULL,
	operation text NOT NULL,
	parked    boolean NOT NULL,
	letter    bytea NOT NULL,
	PRIMARY KEY (queue, id)
);
