package resilience

import (
	"context"
	"errors"
	"net/http"
)

// deduplicate serves idempotent writes: a finished result is replayed, everything else just runs.
func (i *Idempotency) deduplicate(ctx context.Context, t *trip, req *http.Request, next leg) (*http.Response, error) {
	id, print := i.ID(t.key), fingerprint(t, req)
	rec, err := i.load(ctx, id)
	if rec.expired(i.store.Now()) && !i.isPinned()(id) {
		rec = Record{ID: id, Version: rec.Version}
	}
	switch {
	case err != nil:
		i.counts.storeErrors.Add(1)
		return nil, t.refuse("idempotency", errors.Join(ErrStore, err))
	case rec.State != KeyFree && rec.Fingerprint != print:
		return nil, i.reused(t, id)
	case rec.State == KeyConfirmed:
		return i.replayed(rec), nil
	}
	resp, err := next.travel(ctx, t, req)
	if err == nil && isSuccess(resp.StatusCode) && tailOf(resp, nil) == nil {
		i.keepResult(ctx, t, rec.Version, id, print, resp)
	}
	return resp, err
}

// keepResult remembers a finished result; failing to is counted, and costs only the replay. So the caller, who has the
// answer, waits for it no longer than their time and the store's patience last; it is no fault of the store that they left.
func (i *Idempotency) keepResult(caller context.Context, t *trip, version uint64, id, print string, resp *http.Response) {
	ctx, cancel := context.WithTimeout(caller, storePatience)
	defer cancel()
	now := i.store.Now()
	a := receiptOf(resp)
	rec := Record{
		ID: id, State: KeyConfirmed, Operation: t.call.Operation, Fingerprint: print, Owner: i.owner, Epoch: 1, Sends: 1,
		Claimed: now, Sent: now, Settled: now, Expires: now.Add(i.cfg.TTL), CallID: a.callID, Status: a.status,
		Header: a.header, Body: a.body, Evidence: "answer",
	}
	if _, _, err := i.swap(ctx, version, rec); err != nil && caller.Err() == nil {
		i.counts.storeErrors.Add(1)
	}
}
