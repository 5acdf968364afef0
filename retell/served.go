package retell

// fill says where an answer came from.
func (a *answer) fill(m *Meta) {
	m.StatusCode = a.resp.StatusCode
	m.Raw = a.body
}
