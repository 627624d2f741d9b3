//! Records in two arenas, slot by slot: one part of each is used all the time, the other one seldom.
use std::{
    ops::{Deref, DerefMut},
    os::fd::OwnedFd,
    ptr::NonNull,
    sync::Arc,
};

use rnic_transport::Record;
use rustix::io::{Errno, pread};

use super::{
    ArenaBox, ArenaError, ArenaId, SlotArena,
    map::{HEADER, Mapping},
};

/// An arena of records of type `T`, with a file beside it that has a `B` for each of its slots. Owned by the control thread.
///
/// A `B` is not written before its owner does: it is whatever an earlier owner of the slot has left, or zeros, and takes no
/// memory until then. What of it means anything its `T` has to say.
pub struct PairArena<T, B> {
    first: SlotArena<T>,
    beside: Arc<Beside<B>>,
}

/// The file of the second parts.
struct Beside<B> {
    map: Mapping,
    _records: std::marker::PhantomData<fn() -> B>,
}

impl<B: Record> Beside<B> {
    const STRIDE: usize = size_of::<B>();

    const fn reserved(limit: u32) -> usize {
        HEADER + (limit as usize * Self::STRIDE).next_multiple_of(HEADER)
    }

    fn over(map: Mapping) -> Self {
        const { assert!(HEADER.is_multiple_of(align_of::<B>())) };
        // Most of it is never touched, and what is not takes no memory.
        map.prefer_small_pages();
        let _records = std::marker::PhantomData;
        Beside { map, _records }
    }

    const fn offset(slot: u32) -> usize {
        HEADER + slot as usize * Self::STRIDE
    }

    /// Where the record of a slot lies, if the file is as long.
    fn at(&self, slot: u32) -> Option<NonNull<B>> {
        self.map.at(Self::offset(slot), Self::STRIDE).map(NonNull::cast)
    }

    /// Checks the bytes of a slot, without making a page for them.
    fn check(&self, slot: u32) -> Result<(), ArenaError> {
        let arena = self.map.id;
        let offset = Self::offset(slot) as u64;
        if self.at(slot).is_none() {
            return Err(ArenaError::Range {
                arena,
                offset,
                len: Self::STRIDE as u64,
                why: "is not there, and a record beside it is",
            });
        }
        let mut bytes = vec![0; Self::STRIDE];
        let io = |errno| ArenaError::Io {
            arena,
            call: "pread",
            errno,
        };
        if pread(self.map.fd(), &mut bytes[..], offset).map_err(io)? < Self::STRIDE {
            return Err(io(Errno::IO));
        }
        match B::invalid(&bytes) {
            Some(field) => Err(ArenaError::Invalid { arena, slot, field }),
            None => Ok(()),
        }
    }
}

impl<T: Record, B: Record> PairArena<T, B> {
    /// Bytes of the first arena that a record takes.
    pub const STRIDE: usize = SlotArena::<T>::STRIDE;

    /// An empty arena for `limit` records.
    ///
    /// # Panics
    /// When zeros are no `B`.
    pub fn create([first, beside]: [ArenaId; 2], limit: u32) -> Result<Self, ArenaError> {
        let zeros = vec![0; size_of::<B>()];
        assert!(B::invalid(&zeros).is_none(), "zeros are no record");
        let stride = Beside::<B>::STRIDE;
        let map = Mapping::create(beside, stride, stride, Beside::<B>::reserved(limit))?;
        Ok(PairArena {
            first: SlotArena::create(first, limit)?,
            beside: Arc::new(Beside::over(map)),
        })
    }

    /// An arena another process has left, and the owners of everything in it. Sealed, as of [`SlotArena::open`].
    pub fn open(
        [first, beside]: [ArenaId; 2],
        [first_file, beside_file]: [OwnedFd; 2],
        limit: u32,
    ) -> Result<(Self, Vec<PairBox<T, B>>), ArenaError> {
        let stride = Beside::<B>::STRIDE;
        let map = Mapping::open(beside, beside_file, stride, stride, Beside::<B>::reserved(limit))?;
        let beside = Arc::new(Beside::over(map));
        let (first, found) = SlotArena::open(first, first_file, limit)?;
        let pair = |owner: ArenaBox<T>| {
            beside.check(owner.slot())?;
            Self::pair(&beside, owner)
        };
        let found = found.into_iter().map(pair).collect::<Result<_, _>>()?;
        Ok((PairArena { first, beside }, found))
    }

    /// Puts a record in; what is beside it stays as it is. Control thread.
    pub fn put(&self, record: T) -> Result<PairBox<T, B>, ArenaError> {
        let owner = self.first.put(record)?;
        self.beside.map.grow(Beside::<B>::offset(owner.slot() + 1))?;
        Self::pair(&self.beside, owner)
    }

    /// `owner` is of this arena, and all that was ever written beside it is a `B`: zeros, what [`Beside::check`] has seen, or
    /// what an earlier owner has left.
    fn pair(beside: &Arc<Beside<B>>, owner: ArenaBox<T>) -> Result<PairBox<T, B>, ArenaError> {
        let second = beside.at(owner.slot()).ok_or(ArenaError::Full {
            arena: beside.map.id,
            limit: owner.slot().into(),
        })?;
        Ok(PairBox {
            first: owner,
            second,
            _beside: beside.clone(),
        })
    }

    /// From now on records stay when their owners are dropped.
    pub fn seal(&self) {
        self.first.seal();
    }

    /// Dropping an owner frees its record again.
    pub fn unseal(&self) {
        self.first.unseal();
    }

    /// The files.
    pub fn files(&self) -> std::io::Result<[OwnedFd; 2]> {
        Ok([
            self.first.fd().try_clone_to_owned()?,
            self.beside.map.fd().try_clone_to_owned()?,
        ])
    }

    /// Which the arena of the first parts is.
    pub fn id(&self) -> ArenaId {
        self.first.id()
    }
}

/// The owner of one record of a [`PairArena`], and of what is beside it. Made and dropped on the control thread.
pub struct PairBox<T, B> {
    first: ArenaBox<T>,
    second: NonNull<B>,
    _beside: Arc<Beside<B>>,
}

// SAFETY: it is the only way to its records, like a `Box`.
unsafe impl<T: Send, B: Send> Send for PairBox<T, B> {}
// SAFETY: as above.
unsafe impl<T: Sync, B: Sync> Sync for PairBox<T, B> {}

impl<T, B> PairBox<T, B> {
    /// The slot it lies in.
    pub fn slot(&self) -> u32 {
        self.first.slot()
    }

    /// What is beside the record.
    #[inline]
    pub fn beside(&self) -> &B {
        // SAFETY: whoever owns a slot of the first arena owns the same slot of the second (`pair` is the only place where
        // this owner is made, from the only owner of the slot); it is a valid `B` (see there), mapped as long as `_beside`.
        unsafe { self.second.as_ref() }
    }

    /// The record and what is beside it.
    #[inline]
    pub fn both(&mut self) -> (&mut T, &mut B) {
        // SAFETY: as in `beside`, and `&mut self` makes this the only access; the two lie in different files.
        (&mut self.first, unsafe { self.second.as_mut() })
    }
}

impl<T, B> Deref for PairBox<T, B> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.first
    }
}

impl<T, B> DerefMut for PairBox<T, B> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.first
    }
}
