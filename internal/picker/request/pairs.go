package request

const (
	// MaxPairs bounds the pairs with which a query counts in Facts.PromptBytes: twice as many as Cohere advises to send in one
	// call.
	MaxPairs = 2048
	// MaxRepeated bounds the bytes that pairs repeat: 512 tokens in each of MaxPairs. Otherwise a body of 1 KB in gzip could
	// pass for gigabytes, and its endpoint for one that is busy for hours.
	MaxRepeated = 4 << 20
)

// A call to rerank or to score sends a query and documents. A model sees pairs: the query with each document. By vLLM's
// and SGLang's templates an instruction comes first, then the query, then the document, and without a template one
// follows the other. (Of the models that vLLM has a template for, JinaVL's alone begins with the document. Its blocks are
// of a wrong order, and so guess its cache wrong. A request does not show which template its model has.) Where item_first
// is set, the document comes before the query. So the blocks are those of instruction, query and first document.

// sideOf returns the section of a pair that a member of the request is, and its shape.
func sideOf(k key) (int, shape) {
	switch k {
	case keyInstruction:
		return instructionSection, partsShape
	case keyQuery:
		return querySection, contentShape
	case keyQueries:
		return querySection, sideShape
	case keyDocuments:
		return documentSection, sideShape
	}
	return 0, noSection
}

// side reads one side of the pairs: a text, or a list of texts, whose first one gives the blocks.
func (r *reader) side(s *section, how shape) {
	parts := how == contentShape && r.listsObjects()
	if parts || r.listsTokenIDs() || !r.enter('[') {
		r.sideText()
		return
	}
	for r.element() {
		r.sideText()
		r.endText(s)
	}
}

// sideText reads a text: a string, token ids, a list of content parts, or an object with a text or a content.
func (r *reader) sideText() {
	if r.listsTokenIDs() {
		r.at++
		r.tokenIDs()
		return
	}
	r.items(partDepth)
}

// pair counts what each pair repeats, and puts the sides in the model's order.
func (r *reader) pair() {
	query, document := &r.sections[querySection], &r.sections[documentSection]
	if document.side && document.texts > 1 {
		r.promptBytes += min((min(document.texts, MaxPairs)-1)*r.shared(), MaxRepeated)
	}
	if r.itemFirst && (query.side || document.side) {
		*query, *document = *document, *query
	}
}

// shared returns the length of what all pairs have in common.
func (r *reader) shared() int {
	shared := r.sections[instructionSection].length
	if query := &r.sections[querySection]; query.texts == 1 { // otherwise each document has a query of its own
		shared += query.length
	}
	return shared
}
