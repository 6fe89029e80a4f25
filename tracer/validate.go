package tracer

// Validate returns an [OptionsError] if New would refuse o, nil if it would not.
// It is for those who filter by the same rules what was traced before.
func (o *Options) Validate() error {
	if err := o.validate(); err != nil {
		return &OptionsError{err}
	}
	return nil
}
