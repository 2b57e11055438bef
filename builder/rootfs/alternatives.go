package rootfs

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/internal/tree"
)

// alternatives makes the links that the profile declares: straight to the
// program, without Debian's step over /etc/alternatives.
func (b *build) alternatives() error {
	for _, link := range slices.Sorted(maps.Keys(b.params.Alternatives)) {
		target := b.params.Alternatives[link]
		if !path.IsAbs(link) || link != path.Clean(link) || link == "/" || !path.IsAbs(target) {
			return fmt.Errorf("rootfs: alternative %q = %q: want two absolute paths", link, target)
		}
		name, err := b.links.place(strings.TrimPrefix(link, "/"))
		if err != nil {
			return fmt.Errorf("rootfs: alternative %s: %w", link, err)
		}
		if b.get(target) == nil && !b.isDir(target) {
			return fmt.Errorf("rootfs: alternative %s: no %s in the tree", link, target)
		}
		if n := b.at[name]; n != nil && n.Target != target {
			return fmt.Errorf("rootfs: alternative %s: %s has a file there", link, n.owner())
		}
		b.force(tree.Symlink(name, target))
		b.at[name].profile = true
	}
	return nil
}
