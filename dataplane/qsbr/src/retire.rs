//! Retiring from a poll core: batches of handles travel to the control thread in preallocated pages.

use crate::link::{EmbeddedList, LinkArena};
use crate::spsc::{self, Consumer, Producer};

/// A batch of handles, of fixed capacity.
pub struct RetirePage<T> {
    items: Vec<T>,
    capacity: usize,
}

impl<T: Copy> RetirePage<T> {
    /// An empty page. Allocates; nothing done with the page later does.
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        Self {
            items: Vec::with_capacity(capacity),
            capacity,
        }
    }

    /// Adds `item`, or gives it back if the page is full.
    pub fn push(&mut self, item: T) -> Result<(), T> {
        if self.is_full() {
            return Err(item);
        }
        self.items.push(item);
        Ok(())
    }

    /// Whether the next `push` would fail.
    pub fn is_full(&self) -> bool {
        self.items.len() >= self.capacity
    }

    /// The handles in it, in the order they were pushed.
    pub fn items(&self) -> &[T] {
        &self.items
    }
}

/// There is no page to take the item, which is handed back: link the object into an [`EmbeddedList`] instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPage<T>(pub T);

/// The poll core's end of a [`retire_channel`]. Never blocks, allocates or frees; dropping it frees pages, so that is
/// for the control thread to do, once the poll core has returned it.
pub struct RetireCache<T> {
    current: Option<RetirePage<T>>,
    empty: Consumer<RetirePage<T>>,
    full: Producer<RetirePage<T>>,
}

/// The control thread's end of a [`retire_channel`].
pub struct RetireCollector<T> {
    empty: Producer<RetirePage<T>>,
    full: Consumer<RetirePage<T>>,
}

/// Makes the way from one poll core to the control thread: `pages` pages (at least 1) of `page_capacity` handles,
/// allocated now and going round for ever.
pub fn retire_channel<T: Copy + Send>(
    pages: usize,
    page_capacity: usize,
) -> (RetireCache<T>, RetireCollector<T>) {
    let pages = pages.max(1);
    // Either ring holds all pages there are, so a push into one cannot fail.
    let (mut empty_in, empty_out) = spsc::ring(pages);
    let (full_in, full_out) = spsc::ring(pages);
    for _ in 0..pages {
        if empty_in.push(RetirePage::new(page_capacity)).is_err() {
            unreachable!("the ring was made for {pages} pages");
        }
    }
    (
        RetireCache {
            current: None,
            empty: empty_out,
            full: full_in,
        },
        RetireCollector {
            empty: empty_in,
            full: full_out,
        },
    )
}

impl<T: Copy> RetireCache<T> {
    /// Hands `item` over, by way of the current page. The object must be unpublished already.
    ///
    /// # Errors
    /// [`NoPage`] with the item, if all pages are under way to the control thread.
    pub fn push(&mut self, item: T) -> Result<(), NoPage<T>> {
        let mut page = match self.current.take().or_else(|| self.empty.pop()) {
            Some(page) => page,
            None => return Err(NoPage(item)),
        };
        let pushed = page.push(item);
        if page.is_full() {
            self.send(page);
        } else {
            self.current = Some(page);
        }
        pushed.map_err(NoPage)
    }

    /// Hands over a batch and returns how many were taken: all of them, or as many as there were pages for.
    pub fn push_batch(&mut self, items: &[T]) -> usize {
        items.iter().take_while(|&&item| self.push(item).is_ok()).count()
    }

    /// Sends the current page even if not full. To be called once in a while (at a quiescent state, say), so that the
    /// last few objects are not kept waiting for the page to fill.
    pub fn flush(&mut self) {
        if let Some(page) = self.current.take() {
            self.send(page);
        }
    }

    /// Moves objects which had to wait in `list` into pages, as long as there are any, and returns how many it moved.
    /// `handle` names the object at a slot.
    pub fn push_list(
        &mut self,
        list: &mut EmbeddedList,
        arena: &mut impl LinkArena,
        mut handle: impl FnMut(u32) -> T,
    ) -> usize {
        let mut moved = 0;
        while let Some(slot) = list.first()
            && self.push(handle(slot)).is_ok()
        {
            list.pop(arena);
            moved += 1;
        }
        moved
    }

    fn send(&mut self, page: RetirePage<T>) {
        // Cannot be full, see `retire_channel`; were it, the page stays current rather than be freed here.
        if let Err(page) = self.full.push(page) {
            self.current = Some(page);
        }
    }
}

impl<T: Copy> RetireCollector<T> {
    /// Takes all handles that have arrived, in order, sends the pages back empty, and returns the number of handles.
    ///
    /// Call [`Qsbr::advance`](crate::Qsbr::advance) *after* this: the epoch it returns is the one these objects wait
    /// for, since they were unpublished before they were pushed.
    pub fn collect(&mut self, mut take: impl FnMut(T)) -> usize {
        let mut taken = 0;
        while let Some(mut page) = self.full.pop() {
            taken += page.items.len();
            page.items.drain(..).for_each(&mut take);
            // Cannot fail, see `retire_channel`; a page lost here would cost capacity, nothing else.
            let _ = self.empty.push(page);
        }
        taken
    }
}
