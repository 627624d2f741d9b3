//! Tables of slots that are nothing but atomic words, and therefore used where they lie.
use std::{
    marker::PhantomData,
    ops::Deref,
    os::fd::{BorrowedFd, OwnedFd},
    slice,
};

use super::{
    ArenaError, ArenaId,
    map::{HEADER, Mapping},
};

/// A slot that consists of atomic words alone.
///
/// # Safety
/// Every field is an atomic, or an array of them, so that any bytes are a value and `&self` is enough to change it;
/// there is no padding; a page is aligned for it.
pub unsafe trait AtomicWords: Sync {}

/// A table of slots in a file, all of which are there from the start: whoever uses one touches no page that would
/// have to be made. What a slot's words mean is its owner's to check ([`CellTable::open`] takes any).
pub struct CellTable<T> {
    map: Mapping,
    len: usize,
    _cells: PhantomData<T>,
}

impl<T: AtomicWords> CellTable<T> {
    /// `len` slots of zeros.
    pub fn create(id: ArenaId, len: u32) -> Result<Self, ArenaError> {
        let map = Mapping::create(id, size_of::<T>(), size_of::<T>(), Self::bytes(len))?;
        Self::over(map, len)
    }

    /// A table another process has left. If that one had fewer slots, the others are zero.
    pub fn open(id: ArenaId, fd: OwnedFd, len: u32) -> Result<Self, ArenaError> {
        let map = Mapping::open(id, fd, size_of::<T>(), size_of::<T>(), Self::bytes(len))?;
        Self::over(map, len)
    }

    const fn bytes(len: u32) -> usize {
        HEADER + (len as usize * size_of::<T>()).next_multiple_of(HEADER)
    }

    fn over(map: Mapping, len: u32) -> Result<Self, ArenaError> {
        map.grow(Self::bytes(len))?;
        for page in (HEADER..map.extent()).step_by(HEADER) {
            if let Some(at) = map.at(page, 1) {
                // SAFETY: a byte within the mapping and the file. The value is of no interest: the page is there now.
                unsafe { at.read_volatile() };
            }
        }
        let len = len as usize;
        let _cells = PhantomData;
        Ok(CellTable { map, len, _cells })
    }

    /// The file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.map.fd()
    }

    /// Which it is.
    pub fn id(&self) -> ArenaId {
        self.map.id
    }
}

impl<T: AtomicWords> Deref for CellTable<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        const { assert!(align_of::<T>() <= HEADER && size_of::<T>() > 0) };
        // SAFETY: `over` has made the file long enough for `len` slots, which begin behind the header, a page from the
        // page-aligned start; `map` keeps them mapped. They are initialised (it is a file), any bytes are a `T`, and all
        // access to them is atomic (`AtomicWords`), by this process or another one.
        unsafe { slice::from_raw_parts(self.map.cells().cast::<T>().as_ptr(), self.len) }
    }
}
