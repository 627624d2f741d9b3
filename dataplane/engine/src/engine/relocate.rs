//! Handing the state of the data path over to another process, and taking it over (DESIGN I13).
//!
//! [`Engine::hand_over`] stops the cores between two passes and leaves the arenas. In the process that takes over,
//! [`Engine::resume`] opens them and starts the cores; the control thread then maps the clients' regions again, hands
//! their doorbells to the cores ([`Command::AddClient`]), and calls [`Engine::rebuild`], which makes every object with
//! its template anew from the records, and [`Engine::adopt`], which gives them to the cores: tables, timers and lists.
//!
//! Deadlines are times of the monotonic clock, which is one for all processes since boot: they stay what they are. A
//! frame that was on its way is lost, as on a wire; its QP sends it again.
use std::{collections::BTreeSet, io, os::fd::OwnedFd, sync::Arc};

use rnic_transport::BadField;

use super::{Engine, EngineConfig, StartError, check_sizes};
use crate::{
    arena::ArenaError,
    command::{Command, Message, Token},
    core::{CORE_FILES, CompletionQueue, Core, CoreArenas, Found, NO_CLIENT, Qp, Srq},
    mem::{AhEntry, AhTable, ClientMem, MrRecord, MrTable},
    nonblocking::might_block,
    view::{Kind, Leaf, generation_of, slot_of},
};

/// What a daemon leaves to the next one.
#[derive(Debug)]
pub struct EngineImage {
    /// Boot epoch of the daemon that made it. The next one goes on under the same: clients see no other.
    pub boot_epoch: u64,
    /// By core: the files of its QPs, CQs and SRQs, and of the variable parts of QPs.
    pub cores: Vec<[OwnedFd; CORE_FILES]>,
    /// Memory regions.
    pub mrs: OwnedFd,
    /// Address handles.
    pub ahs: OwnedFd,
    /// A line for each object, sorted: what [`Rebuilt::inventory`] finds again.
    pub inventory: Vec<String>,
}

/// What was found in an image and waits for [`Engine::rebuild`].
pub struct Inheritance {
    cores: Vec<Found>,
    mrs: Vec<(u32, MrRecord)>,
    ahs: Vec<AhEntry>,
}

/// The objects of one core.
#[allow(clippy::vec_box, reason = "they travel in these boxes")]
struct Objects {
    cqs: Vec<Box<CompletionQueue>>,
    srqs: Vec<Box<Srq>>,
    qps: Vec<Box<Qp>>,
}

/// Objects made from an image, for [`Engine::adopt`].
pub struct Rebuilt {
    cores: Vec<Objects>,
    mrs: Vec<(u32, MrRecord)>,
    ahs: Vec<AhEntry>,
}

/// The clients' memory in this process, mapped again by the control thread.
pub trait Regions {
    /// The context region of the client with this index.
    fn region(&self, client: u32) -> Option<Arc<ClientMem>>;
    /// The mapping behind a key.
    fn mapping(&self, key: u32) -> Option<&ClientMem>;
    /// The daemon's end of the completion channel of a CQ that has one.
    fn channel(&self, client: u32, handle: u32) -> Option<Arc<OwnedFd>>;
}

/// Why an image cannot be taken over. It stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// The cores cannot be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// An arena is damaged.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// Numbers name cores by their count.
    #[error("the image is of {image} poll cores, the configuration has {config}; they must be as many")]
    Cores {
        /// In the image.
        image: usize,
        /// In the configuration.
        config: usize,
    },
    /// The region of a client is not there.
    #[error("there is no region for client {client}, which has objects in the image")]
    NoRegion {
        /// Index of the client.
        client: u32,
    },
    /// The memory of a key is not there, or too short.
    #[error("there is no mapping of {len} bytes for key {key:#x}")]
    NoMapping {
        /// The key.
        key: u32,
        /// Length of its region.
        len: u64,
    },
}

/// Tokens of commands that are answered to the engine itself: no other counts down from the end.
fn own_token(n: u64) -> Token {
    Token(u64::MAX - n)
}

impl Engine {
    /// Stops the cores between two passes and leaves everything they have in the arenas. What was destroyed is freed
    /// first, whether or not its grace period had passed: no core is left that could look at it. Events that
    /// [`Engine::poll`] has not brought yet are brought by the engine that takes over.
    ///
    /// # Errors
    /// A descriptor could not be duplicated; the state is lost then, as by [`Engine::stop`].
    pub fn hand_over(mut self) -> io::Result<EngineImage> {
        let mut stopped = self.halt();
        for core in &mut stopped {
            core.forget_commands();
            core.take_back_events(&mut self.cores[core.id()].messages);
        }
        // What no core has taken in was never promised to anyone, and what was given up is gone.
        for core in &mut self.cores {
            core.waiting.clear();
            core.retired.collect(drop);
        }
        self.unopened.clear();
        self.reclaim();
        let files = self
            .arenas
            .iter()
            .map(CoreArenas::files)
            .collect::<io::Result<_>>();
        let mrs = self.mrs.fd().try_clone_to_owned();
        let ahs = self.ahs.fd().try_clone_to_owned();
        let mut inventory: Vec<String> = stopped.iter().flat_map(Core::describe).collect();
        inventory.extend(self.mrs.entries().unwrap_or_default().iter().map(describe_mr));
        inventory.extend(self.ahs.entries().unwrap_or_default().iter().map(describe_ah));
        inventory.sort();
        self.arenas.iter().for_each(CoreArenas::seal);
        let boot_epoch = self.boot_epoch;
        self.close(stopped);
        Ok(EngineImage {
            boot_epoch,
            cores: files?,
            mrs: mrs?,
            ahs: ahs?,
            inventory,
        })
    }

    /// Opens what another daemon has left, and starts the cores. They have nothing until [`Engine::adopt`].
    ///
    /// # Errors
    /// Those of [`Engine::start`]; an arena that is damaged or not this image's.
    pub fn resume(config: EngineConfig, image: EngineImage) -> Result<(Engine, Inheritance), ResumeError> {
        might_block();
        check_sizes(&config)?;
        let EngineImage {
            boot_epoch,
            cores,
            mrs,
            ahs,
            ..
        } = image;
        let (image, config_cores) = (cores.len(), config.cores.len());
        if image != config_cores {
            let config = config_cores;
            return Err(ResumeError::Cores { image, config });
        }
        let mut arenas = Vec::new();
        let mut found = Vec::new();
        for (core, files) in (0..).zip(cores) {
            let (arena, objects) = CoreArenas::open(core, boot_epoch, files, &config.limits)?;
            arenas.push(arena);
            found.push(objects);
        }
        let mrs = MrTable::open(boot_epoch, mrs, config.limits.mrs)?;
        let ahs = AhTable::open(boot_epoch, ahs, config.limits.ahs)?;
        let inheritance = Inheritance {
            cores: found,
            mrs: mrs.entries()?,
            ahs: ahs.entries()?,
        };
        let engine = Engine::launch(config, boot_epoch, arenas, mrs, ahs, &mut super::spawn)?;
        Ok((engine, inheritance))
    }

    /// Makes the objects of what was found, and the keys valid.
    ///
    /// # Errors
    /// Records that contradict each other, or memory that is not there. No core has got anything then, and the
    /// arenas are as they were: the engine is of no use but to be stopped.
    pub fn rebuild(
        &mut self,
        inheritance: Inheritance,
        regions: &impl Regions,
    ) -> Result<Rebuilt, ResumeError> {
        might_block();
        let Inheritance { cores, mrs, ahs } = inheritance;
        let mut objects = Vec::new();
        for (core, found) in cores.into_iter().enumerate() {
            objects.push(self.rebuild_core(core, found, regions)?);
        }
        for (key, record) in mrs.iter().filter(|(_, record)| !record.is_window()) {
            let mapped = regions
                .mapping(*key)
                .is_some_and(|mem| self.mrs.resume(*key, record, mem));
            if !mapped {
                let (key, len) = (*key, record.len);
                return Err(ResumeError::NoMapping { key, len });
            }
        }
        for (key, record) in mrs.iter().filter(|(_, record)| record.is_window()) {
            self.mrs.resume_window(*key, record);
        }
        Ok(Rebuilt {
            cores: objects,
            mrs,
            ahs,
        })
    }

    /// Hands the cores what was rebuilt, waits until they have taken it in, publishes it, and lets it begin. Commands submitted
    /// before are carried out before. Messages that came meanwhile are returned.
    pub fn adopt(&mut self, rebuilt: Rebuilt) -> Vec<(usize, Message)> {
        might_block();
        let mut sent = 0;
        let mut leaves = Vec::new();
        for (core, Objects { cqs, srqs, qps }) in rebuilt.cores.into_iter().enumerate() {
            for queue in cqs {
                let (cq, token) = (queue.number(), own_token(sent));
                self.submit(core, Command::AddCq { cq, queue, token });
                sent += 1;
            }
            for srq in srqs {
                let token = own_token(sent);
                self.submit(core, Command::AddSrq { srq, token });
                sent += 1;
            }
            for qp in qps {
                let (qpn, token) = (qp.qpn(), own_token(sent));
                let slot = slot_of(qpn);
                leaves.push((qpn, Leaf::new(qpn, core as u16, slot)));
                let change = None;
                self.submit(
                    core,
                    Command::AddQp {
                        slot,
                        qp,
                        change,
                        token,
                    },
                );
                sent += 1;
            }
        }
        let mut others = self.wait_for(0, sent);
        for (qpn, leaf) in leaves {
            self.publisher.add(Kind::Qp, qpn, leaf);
        }
        self.commit();
        let cores = self.core_count() as u64;
        for core in 0..cores {
            let token = own_token(sent + core);
            self.submit(core as usize, Command::Begin { token });
        }
        others.extend(self.wait_for(sent, cores));
        self.arenas.iter().for_each(CoreArenas::unseal);
        others
    }

    /// The objects of one core, from their records.
    fn rebuild_core(
        &self,
        core: usize,
        found: Found,
        regions: &impl Regions,
    ) -> Result<Objects, ResumeError> {
        let arenas = &self.arenas[core];
        let region = |client| regions.region(client).ok_or(ResumeError::NoRegion { client });
        let (mut cqs, mut srqs, mut qps) = (Vec::new(), Vec::new(), Vec::new());
        let mut seen = BTreeSet::new();
        for rec in found.cqs {
            let wrong = |field, value: u32, must| {
                let (arena, slot) = (arenas.cqs.id(), rec.slot());
                let value = value.into();
                let error = BadField { field, value, must };
                Err(ArenaError::Contradiction { arena, slot, error })
            };
            if rec.subring as usize != core {
                wrong("subring", rec.subring, "that of the arena's core")?;
            }
            if rec.number >= self.limits.cqs || !seen.insert(rec.number) {
                wrong("number", rec.number, "below limits.cqs, and no other CQ's")?;
            }
            let channel = match rec.channel {
                true => regions.channel(rec.client, rec.handle),
                false => None,
            };
            let mem = region(rec.client)?;
            cqs.push(CompletionQueue::resume(rec, arenas.cqs.id(), mem, channel)?);
        }
        let mut shared = BTreeSet::new();
        for rec in found.srqs {
            let slot = slot_of(rec.number);
            if slot >= self.limits.srqs || !shared.insert(slot) {
                let error = BadField {
                    field: "number",
                    value: rec.number.into(),
                    must: "of a slot below limits.srqs, and no other SRQ's",
                };
                let (arena, slot) = (arenas.srqs.id(), rec.slot());
                return Err(ArenaError::Contradiction { arena, slot, error }.into());
            }
            let mem = region(rec.client)?;
            srqs.push(Srq::resume(rec, arenas.srqs.id(), &mem)?);
        }
        seen.clear();
        for rec in found.qps {
            if let Some(srq) = rec.srq().filter(|srq| !shared.contains(srq)) {
                let error = BadField {
                    field: "id.srq",
                    value: srq.into(),
                    must: "the slot of an SRQ of the same core",
                };
                let (arena, slot) = (arenas.qps.id(), rec.slot());
                return Err(ArenaError::Contradiction { arena, slot, error }.into());
            }
            let qpn = rec.id.qpn;
            let known = (2..self.limits.qps).contains(&slot_of(qpn)) && generation_of(qpn).is_some();
            if !known || usize::from(self.publisher.owner(qpn)) != core || !seen.insert(slot_of(qpn)) {
                let error = BadField {
                    field: "id.qpn",
                    value: qpn.into(),
                    must: "a number of this core with a slot below limits.qps, and no other QP's",
                };
                let (arena, slot) = (arenas.qps.id(), rec.slot());
                return Err(ArenaError::Contradiction { arena, slot, error }.into());
            }
            let mem = match rec.id.client {
                NO_CLIENT => None,
                client => Some(region(client)?),
            };
            qps.push(Qp::resume(rec, arenas, mem.as_ref())?);
        }
        Ok(Objects { cqs, srqs, qps })
    }

    /// Waits until `count` own tokens from `first` on were answered.
    fn wait_for(&mut self, first: u64, count: u64) -> Vec<(usize, Message)> {
        let mut left = count;
        let mut others = Vec::new();
        while left > 0 && self.is_healthy() {
            self.poll(|core, message| match message {
                Message::Done { token } if (first..first + count).contains(&(u64::MAX - token.0)) => {
                    left -= 1
                }
                other => others.push((core, other)),
            });
            std::thread::yield_now();
        }
        others
    }
}

impl Rebuilt {
    /// A line for each object, sorted: the same as in [`EngineImage::inventory`].
    pub fn inventory(&self) -> Vec<String> {
        let cqs = self.cores.iter().flat_map(|core| &core.cqs);
        let qps = self.cores.iter().flat_map(|core| &core.qps);
        let mut lines: Vec<String> = cqs.map(|cq| cq.describe()).collect();
        let srqs = self.cores.iter().flat_map(|core| &core.srqs);
        lines.extend(srqs.map(|srq| srq.describe()));
        lines.extend(qps.map(|qp| qp.describe()));
        lines.extend(self.mrs.iter().map(describe_mr));
        lines.extend(self.ahs.iter().map(describe_ah));
        lines.sort();
        lines
    }
}

impl Inheritance {
    /// Indices of the clients that have objects in it.
    pub fn clients(&self) -> BTreeSet<u32> {
        let all = self.cores.iter();
        all.flat_map(|found| {
            let cqs = found.cqs.iter().map(|cq| cq.client);
            let srqs = found.srqs.iter().map(|srq| srq.client);
            let qps = found.qps.iter().map(|qp| qp.id.client);
            cqs.chain(srqs).chain(qps.filter(|client| *client != NO_CLIENT))
        })
        .collect()
    }

    /// Every valid address handle. They lead where they led as soon as there are cores.
    pub fn ahs(&self) -> &[AhEntry] {
        &self.ahs
    }

    /// Every valid key, of regions and of windows, and what it stands for.
    pub fn keys(&self) -> &[(u32, MrRecord)] {
        &self.mrs
    }
}

fn describe_ah(ah: &AhEntry) -> String {
    format!("AH {:#x}: {ah:?}", ah.number)
}

fn describe_mr((key, record): &(u32, MrRecord)) -> String {
    let kind = if record.is_window() { "MW" } else { "MR" };
    format!("{kind} {key:#x}: {record:?}")
}
