package circuit

// ForceOpen refuses every call until ForceClose or Reset.
func (g *Gate) ForceOpen() {
	g.force(Open, Result{Cause: "forced"})
}

// ForceClose admits every call, and counts none in the window, until ForceOpen or Reset.
func (g *Gate) ForceClose() { g.force(Closed, Result{Cause: "forced"}) }

// Reset makes the circuit closed, as if nothing had happened. Calls under way no longer count.
func (g *Gate) Reset() {
	g.mu.Lock()
	defer g.unlock()
	from := g.state
	g.generation++
	g.calm()
	g.tell(Change{Kind: Reset, From: from, To: Closed})
}

func (g *Gate) force(to State, by Result) {
	g.mu.Lock()
	defer g.unlock()
	from, again := g.state, g.forced && g.state == to
	if again {
		return
	}
	g.hold(to, by)
	if from == to {
		g.noticed = to == Open // its time may have been up, and somebody wait for the trial
		return                 // it was in that state by itself: held there now, but not changed
	}
	if to == Open {
		g.changes.Opened++
		g.noticed = true
	} else {
		g.changes.Closed++
	}
	g.tell(Change{From: from, To: to, Last: by})
}

// hold puts the gate into a state by hand, and says nothing.
func (g *Gate) hold(to State, by Result) {
	g.generation++
	g.calm()
	g.state, g.forced = to, true
	g.openedAt = g.now()
	g.refusal = g.cfg.Refusal(g.key, by)
	if to == Open {
		g.shut.Store(&shut{until: -1, err: g.refusal})
	}
}

// forget clears the changes that were counted.
func (g *Gate) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.changes = Changes{}
}

// follow makes a new gate start in the state that another is held in.
func (g *Gate) follow(other *Gate) {
	other.mu.Lock()
	state, forced := other.state, other.forced
	other.mu.Unlock()
	if forced {
		g.hold(state, Result{Cause: "forced"})
	}
}
