//! Poll cores without threads, for whoever measures them or steps through them.
use super::{Engine, EngineConfig, StartError};
use crate::{
    core::{Core, CoreCounters, Spent, Stage},
    nonblocking::NonBlocking,
    port::PortStats,
};

/// A poll core that its owner drives, pass by pass, on any thread. One that makes many passes should be known to DPDK:
/// [`register_thread`](crate::port::register_thread). The idle policy has no meaning.
pub struct DrivenCore {
    core: Core,
}

impl DrivenCore {
    /// One pass of the poll loop; tells how many things there were to do. No allocation, no lock, no system call but what a
    /// port's driver makes.
    #[inline]
    pub fn pass(&mut self) -> usize {
        let _section = NonBlocking::enter();
        self.core.pass()
    }

    /// Where its cycles went, in the order of [`Stage::ALL`]; `None` in builds without the feature `stages`.
    pub fn spent(&self) -> Option<[Spent; Stage::ALL.len()]> {
        self.core.spent()
    }

    /// Its counters, as they are now.
    pub fn counters(&self) -> CoreCounters {
        self.core.counters()
    }

    /// What its queue of a port has counted; nothing where it has none.
    pub fn port_stats(&self, port: usize) -> PortStats {
        self.core.port_stats(port)
    }
}

impl Engine {
    /// As [`Engine::start`], without threads: the caller drives the cores, which [`Engine::stop_driven`] takes back. Until
    /// a core makes a pass, no command is carried out and no grace period ends.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn start_driven(config: EngineConfig) -> Result<(Engine, Vec<DrivenCore>), StartError> {
        let mut cores = Vec::new();
        let engine = Self::start_with(config, &mut |init, _cpu| {
            let mut core = Core::new(init);
            core.begin();
            cores.push(DrivenCore { core });
            Ok(None)
        })?;
        Ok((engine, cores))
    }

    /// Frees everything, closes the ports. The cores are those that were started with the engine.
    pub fn stop_driven(self, cores: Vec<DrivenCore>) {
        crate::nonblocking::might_block();
        let stopped = cores.into_iter().map(|driven| {
            let mut core = driven.core;
            core.end();
            core
        });
        let stopped = stopped.collect();
        self.close(stopped);
    }
}
