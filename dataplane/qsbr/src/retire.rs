//! Retiring from a poll core: batches of objects travel to the control thread in preallocated pages.

use crate::link::{EmbeddedList, Linked};
use crate::spsc::{self, Consumer, Producer};

/// A batch of objects (or handles of them), of fixed capacity.
pub struct RetirePage<T> {
    items: Vec<T>,
    capacity: usize,
}

impl<T> RetirePage<T> {
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

    /// What is in it, in the order they were pushed.
    pub fn items(&self) -> &[T] {
        &self.items
    }
}

/// There is no page to take the item, which is handed back. A [`Retirer`] links it into an [`EmbeddedList`] instead.
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

/// Makes the way from one poll core to the control thread: `pages` pages (at least 1) of `page_capacity` objects,
/// allocated now and going round for ever.
pub fn retire_channel<T: Send>(pages: usize, page_capacity: usize) -> (RetireCache<T>, RetireCollector<T>) {
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

impl<T> RetireCache<T> {
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

    /// Sends the current page even if not full, and tells whether there was one. To be called once in a while (in each
    /// pass of a loop, say), so that the last few objects are not kept waiting for the page to fill.
    pub fn flush(&mut self) -> bool {
        let page = self.current.take();
        let sent = page.is_some();
        page.into_iter().for_each(|page| self.send(page));
        sent
    }

    fn send(&mut self, page: RetirePage<T>) {
        // Cannot be full, see `retire_channel`; were it, the page stays current rather than be freed here.
        if let Err(page) = self.full.push(page) {
            self.current = Some(page);
        }
    }
}

/// What a poll core retires with: pages while there are any, then the links of the objects themselves. Nothing it does
/// can fail, block, allocate or free, so it may be called at any point of the poll loop. As with [`RetireCache`], the
/// control thread drops it.
pub struct Retirer<T: Linked> {
    pages: RetireCache<T>,
    waiting: EmbeddedList<T>,
}

impl<T: Linked> From<RetireCache<T>> for Retirer<T> {
    fn from(pages: RetireCache<T>) -> Self {
        let waiting = EmbeddedList::new();
        Self { pages, waiting }
    }
}

impl<T: Linked> Retirer<T> {
    /// Hands `item` over and tells whether a page took it; without one it waits here on its own link for the next
    /// [`flush`](Self::flush). It must be unpublished already.
    pub fn retire(&mut self, item: T) -> bool {
        let refused = self.pages.push(item).err();
        let paged = refused.is_none();
        refused
            .into_iter()
            .for_each(|NoPage(item)| self.waiting.push(item));
        paged
    }

    /// Sends everything that there are pages for, and tells whether that was anything: the collector is then to be
    /// woken.
    pub fn flush(&mut self) -> bool {
        let mut sent = false;
        while let Some(item) = self.waiting.pop() {
            if let Err(NoPage(item)) = self.pages.push(item) {
                self.waiting.push(item);
                break;
            }
            sent = true;
        }
        self.pages.flush() || sent
    }

    /// Objects that wait for a page.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

impl<T> RetireCollector<T> {
    /// Whether nothing has arrived.
    pub fn is_empty(&self) -> bool {
        self.full.is_empty()
    }

    /// Takes all objects that have arrived, page by page, sends the pages back empty, and returns how many they were.
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
