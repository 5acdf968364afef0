package boltstore

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
)

// This file reads bbolt's pages by itself, with every length checked. bbolt trusts them: when it opens a file for writing
// it walks through all pages in a goroutine of its own, where a length that is wrong ends the process and cannot be
// caught. So pages are looked at here before. The layout has not changed since the first version of boltdb:
//
//	page     id 8, flags 2, count 2, further pages 4, then count elements of 16, then keys and values
//	branch   element: position 4 (from the element), length of key 4, page 8
//	leaf     element: flags 4, position 4, length of key 4, length of value 4
//	bucket   the value of a leaf element with flag 1: root page 8 (0: a page follows here), sequence 8
//	meta     pages 0 and 1; magic 4, version 4, page size 4, flags 4, root bucket 16, free list 8, end 8, number 8, sum 8
const (
	pageHead    = 16
	elementSize = 16
	bucketHead  = 16
	flagBranch  = 1
	flagLeaf    = 2
	metaSize    = 56 // without the sum
	metaMagic   = 0xED0CDAED
)

var native = binary.NativeEndian

// pages walks through a file.
type pages struct {
	file io.ReaderAt
	size int64           // of a page
	end  uint64          // pages from here on were never used
	seen map[uint64]bool // each page has one place
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// checkPages walks through all pages in use as of the last commit, whose number it returns.
func checkPages(file io.ReaderAt, pageSize int) (number uint64, err error) {
	p := &pages{file: file, size: int64(pageSize), seen: map[uint64]bool{}}
	var root uint64
	for i := range int64(2) {
		b := make([]byte, metaSize+8)
		if _, err := file.ReadAt(b, i*p.size+pageHead); err != nil {
			return 0, damaged("a page could not be read: %v", err)
		}
		sum := fnv.New64a()
		_, _ = sum.Write(b[:metaSize]) // a hash never fails
		if native.Uint32(b) != metaMagic || native.Uint64(b[metaSize:]) != sum.Sum64() {
			continue
		}
		if n := native.Uint64(b[48:]); root == 0 || n > number {
			number, root, p.end = n, native.Uint64(b[16:]), native.Uint64(b[40:])
		}
	}
	if root == 0 {
		return 0, damaged("it has no beginning")
	}
	return number, p.tree(root, nil, nil, true)
}

// read returns a page with those that belong to it.
func (p *pages) read(id uint64) ([]byte, error) {
	head := make([]byte, pageHead)
	if id < 2 || id >= p.end {
		return nil, damaged("there is no page %d", id)
	}
	offset := int64(id) * p.size //nolint:gosec // before the end of the file, or it cannot be read
	if _, err := p.file.ReadAt(head, offset); err != nil {
		return nil, damaged("page %d could not be read: %v", id, err)
	}
	n := 1 + uint64(native.Uint32(head[12:]))
	if native.Uint64(head) != id || n > p.end-id {
		return nil, damaged("page %d is not itself", id)
	}
	for i := range n {
		if p.seen[id+i] {
			return nil, damaged("page %d is used twice", id+i)
		}
		p.seen[id+i] = true
	}
	b := make([]byte, int64(n)*p.size) //nolint:gosec // not more than the file
	if _, err := p.file.ReadAt(b, offset); err != nil {
		return nil, damaged("page %d could not be read: %v", id, err)
	}
	return b, nil
}

// tree checks a page and all below it, whose keys are from least to before most; nil: no bound.
func (p *pages) tree(id uint64, least, most []byte, top bool) error {
	b, err := p.read(id)
	if err != nil {
		return err
	}
	return p.page(b, id, least, most, top)
}

func (p *pages) page(b []byte, id uint64, least, most []byte, top bool) error {
	if len(b) < pageHead {
		return damaged("page %d is too short", id)
	}
	branch := native.Uint16(b[8:]) == flagBranch
	if !branch && native.Uint16(b[8:]) != flagLeaf {
		return damaged("page %d is of no known kind", id)
	}
	list, err := elements(b, branch)
	if err != nil || (branch && len(list) == 0) {
		return damaged("page %d does not hold what it says", id)
	}
	for i, e := range list {
		if (least != nil && bytes.Compare(e.key, least) < 0) || (most != nil && bytes.Compare(e.key, most) >= 0) ||
			(i > 0 && bytes.Compare(list[i-1].key, e.key) >= 0) {
			return damaged("page %d is not in order", id)
		}
		switch {
		case branch:
			next := most
			if i+1 < len(list) {
				next = list[i+1].key
			}
			err = p.tree(e.page, e.key, next, top)
		case top != e.bucket: // buckets are at the top, and nothing else
			err = damaged("page %d holds something else", id)
		case top:
			err = p.bucket(e.value, id)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *pages) bucket(b []byte, id uint64) error {
	if len(b) < bucketHead {
		return damaged("page %d has a bucket that is too short", id)
	}
	if root := native.Uint64(b); root != 0 {
		return p.tree(root, nil, nil, false)
	}
	if inline := b[bucketHead:]; len(inline) < pageHead || native.Uint16(inline[8:]) != flagLeaf {
		return damaged("page %d has a bucket without a page", id)
	}
	return p.page(b[bucketHead:], id, nil, nil, false)
}

type element struct {
	key, value []byte
	page       uint64
	bucket     bool
}

var errBounds = fmt.Errorf("%w: a length is wrong", ErrCorrupt)

func elements(b []byte, branch bool) ([]element, error) {
	n := int(native.Uint16(b[10:]))
	if pageHead+n*elementSize > len(b) {
		return nil, errBounds
	}
	list := make([]element, 0, n)
	for i := range n {
		at := pageHead + i*elementSize
		h := b[at : at+elementSize]
		var e element
		var position, keyLen, valueLen uint64
		if branch {
			position, keyLen, e.page = uint64(native.Uint32(h)), uint64(native.Uint32(h[4:])), native.Uint64(h[8:])
		} else {
			flags := native.Uint32(h)
			position, keyLen, valueLen = uint64(native.Uint32(h[4:])), uint64(native.Uint32(h[8:])), uint64(native.Uint32(h[12:]))
			if e.bucket = flags == 1; flags > 1 {
				return nil, errBounds
			}
		}
		start := uint64(at) + position
		if keyLen == 0 || start < uint64(pageHead+n*elementSize) || start+keyLen+valueLen > uint64(len(b)) {
			return nil, errBounds
		}
		e.key, e.value = b[start:start+keyLen], b[start+keyLen:start+keyLen+valueLen]
		list = append(list, e)
	}
	return list, nil
}
