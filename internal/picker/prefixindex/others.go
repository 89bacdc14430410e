package prefixindex

// others are blocks in an endpoint's cache that no Insert names. Only their number and their age are known.
type others struct {
	blocks int
	groups []group // the oldest first
}

// group is a number of blocks that count as used at the same time.
type group struct {
	used   uint64
	blocks int
}

// groups is about how many groups the blocks of a full cache are in.
const groups = 64

// add adds blocks that were used now. Small groups become one, with the age of the younger.
func (o *others) add(now uint64, blocks, capacity int) {
	o.blocks += blocks
	if n := len(o.groups); n > 0 && o.groups[n-1].blocks+blocks <= capacity/groups {
		o.groups[n-1] = group{now, o.groups[n-1].blocks + blocks}
		return
	}
	o.groups = append(o.groups, group{now, blocks})
}

// used is the last use of the oldest group. There must be one.
func (o *others) used() uint64 { return o.groups[0].used }

// evict removes up to so many blocks of the oldest group.
func (o *others) evict(most int) {
	n := min(most, o.groups[0].blocks)
	o.blocks -= n
	if o.groups[0].blocks -= n; o.groups[0].blocks == 0 {
		o.groups = append(o.groups[:0], o.groups[1:]...)
	}
}
