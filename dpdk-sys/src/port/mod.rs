//! Ethernet ports: life cycle and control. The fast path is in `queue`, what can be asked in `info`.
//!
//! Each port is a device that EAL makes at its start, from `--vdev=NAME,ARGS` or `-a ADDRESS`, or that
//! is plugged in later with [`vdev_init`](crate::vdev_init) and [`dev_probe`](crate::dev_probe). What
//! serves frames of a 4200-byte MTU (RoCE path MTU 4096):
//!
//! - **pair of rings**: [`ring_pair`](crate::ring_pair), no arguments; data room 4608.
//! - **memif**: `net_memif0,role=server,id=0,socket=S,socket-abstract=no,bsize=4352`, the other side
//!   with `role=client`; data room 4608.
//! - **af_packet**: `net_af_packet0,iface=I,blocksz=36864,framesz=4608,framecnt=1024,qdisc_bypass=1`;
//!   the data room must hold `framesz` and the headroom: 4736. Set the MTU of the interface itself:
//!   the driver cannot. Privileged.
//! - **af_xdp**: `net_af_xdp0,iface=I`; buffers must not pass a page, so the data room is at most 3840
//!   and the MTU 3434 (the driver says 3542, and loses larger frames). The driver keeps some buffers for ever: its pool is never freed. Privileged.
//! - **tap**: `net_tap0,iface=I`; MTU at most 1504. Privileged.
//! - **vhost**: `net_vhost0,iface=S,queues=1`, whose socket exists from [`EthDev::configure`] on; data
//!   room 4608. **virtio_user**: `net_virtio_user0,path=S,queues=1,packed_vq=1,in_order=1`, after that.
//! - **PCI function**: `-a 0000:3b:00.1`, without `--no-pci`; its DMA wants hugepages. Data room 4608.

mod config;
mod info;
mod queue;
mod settings;
mod state;

use std::ffi::c_int;
use std::sync::{Arc, MutexGuard};

use crate::eal::Eal;
use crate::error::{Error, c_string, check};
use crate::ffi;
use crate::interrupt::close_port;
use crate::mempool::{Mempool, socket_id};
use crate::removal;
use crate::ring::RingEnd;
use crate::shield::SignalMask;

pub use config::{Applied, PortConfig, Rss};
pub use info::DeviceInfo;
pub(crate) use info::{device_of, id_of, name_of, no_such};
pub use queue::{RxQueue, TxQueue};
pub use settings::{Link, Stats};
pub(crate) use state::PortShared;
use state::{Control, Queue};

/// One Ethernet port, held exclusively. Its methods take a lock and may block: control thread only.
///
/// The usual order: [`open`](Self::open), [`configure`](Self::configure), set up every queue,
/// [`start`](Self::start), hand [`rx_queue`](Self::rx_queue)s and [`tx_queue`](Self::tx_queue)s to poll
/// threads; then have them dropped, [`stop`](Self::stop), [`close`](Self::close) or
/// [`remove`](Self::remove). Dropping the port and all its queue handles stops and closes it too.
pub struct EthDev {
    shared: Arc<PortShared>,
}

impl EthDev {
    /// Takes the port of this name: the virtual device's name or the PCI address.
    ///
    /// # Errors
    /// [`Error::NoSuchPort`] with the names there are, [`Error::PortInUse`].
    pub fn open(eal: &Eal, name: &str) -> Result<EthDev, Error> {
        let c_name = c_string(name)?;
        let mut claimed = eal.claimed();
        let id = info::id_of(&c_name).ok_or_else(|| info::no_such(name))?;
        if !claimed.insert(id) {
            return Err(Error::PortInUse(name.to_owned()));
        }
        drop(claimed);
        Ok(Self::claimed(eal, id, name, None))
    }

    /// A handle to a port that the caller has put among the claimed.
    pub(crate) fn claimed(eal: &Eal, id: u16, name: &str, rings: Option<RingEnd>) -> EthDev {
        EthDev {
            shared: Arc::new(PortShared::new(eal, id, name, rings)),
        }
    }

    /// Names of all ports, held or not.
    pub fn names(eal: &Eal) -> Vec<String> {
        let _plugging = eal.claimed();
        info::all_names()
    }

    /// The port's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// DPDK's number for the port, as in [`Mbuf::port`](crate::Mbuf::port). Reused after a close.
    pub fn id(&self) -> u16 {
        self.shared.id
    }

    /// Sets the number of queues, MTU and offloads of a stopped port. Queues must be set up (again)
    /// afterwards.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if the device cannot do it, [`Error::PortStarted`], [`Error::QueuesHeld`],
    /// [`Error::Call`]. What is merely an optimisation (RSS, VLAN) is left out instead.
    pub fn configure(&self, config: &PortConfig) -> Result<Applied, Error> {
        let mut control = self.stopped("configure")?;
        control.refuse_held("configure", self.name())?;
        let info = info::read(&self.shared)?;
        self.in_range(&info, "receive queues", config.rx_queues, 0, info.max_rx_queues)?;
        self.in_range(&info, "transmit queues", config.tx_queues, 0, info.max_tx_queues)?;
        self.in_range(&info, "an MTU", config.mtu, info.min_mtu, info.max_mtu)?;

        let rss = config
            .rss
            .filter(|_| config.rx_queues > 1)
            .and_then(|wanted| info.usable_rss(wanted));
        let vlan_strip = config.vlan_strip && info.can_strip_vlan();
        let rx_offloads = if vlan_strip {
            ffi::DPDK_RX_OFFLOAD_VLAN_STRIP
        } else {
            0
        };
        let raw = ffi::dpdk_port_conf {
            rx_offloads,
            rss_types: rss.map_or(0, info::rss_types),
            mtu: u32::from(config.mtu.min(info.max_configured_mtu)),
            rx_queues: config.rx_queues,
            tx_queues: config.tx_queues,
        };
        // A failed attempt leaves the port with no usable queues.
        (control.rx, control.tx) = (Vec::new(), Vec::new());
        // SAFETY: the port is open, stopped, and no thread polls it; `raw` is only read.
        self.check("configure", unsafe { ffi::dpdk_port_configure(self.id(), &raw) })?;
        control.rx = (0..config.rx_queues).map(|_| Queue::default()).collect();
        control.tx = (0..config.tx_queues).map(|_| Queue::default()).collect();
        Ok(Applied { rss, vlan_strip })
    }

    /// Sets up receive queue `queue` of a stopped port: it fills its frames into buffers of `pool`.
    /// `descriptors` is moved to the nearest number the device allows.
    ///
    /// # Errors
    /// [`Error::NoSuchQueue`], [`Error::PortStarted`], [`Error::Call`] (buffers too small for the MTU,
    /// for instance).
    pub fn rx_queue_setup(
        &self,
        queue: u16,
        descriptors: u16,
        socket: Option<u32>,
        pool: &Mempool,
    ) -> Result<(), Error> {
        let mut control = self.stopped("set up a queue of")?;
        let slot = self.slot(&mut control.rx, "rx", queue)?;
        let (descriptors, _) = self.nearest_descriptors(descriptors, 0);
        let socket = socket_id(socket) as u32;
        // SAFETY: the port is open and stopped, and the queue exists; a null configuration means the
        // driver's default. The pool is kept below for as long as the device may use it.
        let code = unsafe {
            ffi::rte_eth_rx_queue_setup(
                self.id(),
                queue,
                descriptors,
                socket,
                std::ptr::null(),
                pool.raw(),
            )
        };
        self.check("set up a receive queue of", code)?;
        slot.set_up = true;
        control.keep(pool);
        Ok(())
    }

    /// Sets up transmit queue `queue` of a stopped port.
    ///
    /// # Errors
    /// As for [`EthDev::rx_queue_setup`].
    pub fn tx_queue_setup(&self, queue: u16, descriptors: u16, socket: Option<u32>) -> Result<(), Error> {
        let mut control = self.stopped("set up a queue of")?;
        let slot = self.slot(&mut control.tx, "tx", queue)?;
        let (_, descriptors) = self.nearest_descriptors(0, descriptors);
        let socket = socket_id(socket) as u32;
        // SAFETY: the port is open and stopped, and the queue exists; a null configuration means the
        // driver's default.
        let code =
            unsafe { ffi::rte_eth_tx_queue_setup(self.id(), queue, descriptors, socket, std::ptr::null()) };
        self.check("set up a transmit queue of", code)?;
        slot.set_up = true;
        Ok(())
    }

    /// Starts the port. Does nothing if it is started.
    ///
    /// # Errors
    /// [`Error::QueueNotReady`] if a queue was not set up, [`Error::Call`].
    pub fn start(&self) -> Result<(), Error> {
        let mut control = self.control()?;
        if control.started {
            return Ok(());
        }
        for (direction, queues) in [("rx", &control.rx), ("tx", &control.tx)] {
            if let Some(queue) = queues.iter().position(|queue| !queue.set_up) {
                return Err(self.not_ready(direction, queue as u16, "was not set up"));
            }
        }
        self.check("watch", removal::watch(self.id()))?;
        let _mask = SignalMask::block();
        // SAFETY: the port is open, configured, and all its queues are set up.
        self.check("start", unsafe { ffi::rte_eth_dev_start(self.id()) })?;
        control.started = true;
        Ok(())
    }

    /// Stops the port. Does nothing if it is stopped.
    ///
    /// # Errors
    /// [`Error::QueuesHeld`] while poll threads have queue handles, [`Error::Call`].
    pub fn stop(&self) -> Result<(), Error> {
        let mut control = self.control()?;
        self.stop_locked(&mut control)
    }

    fn stop_locked(&self, control: &mut Control) -> Result<(), Error> {
        control.refuse_held("stop", self.name())?;
        if control.started {
            // SAFETY: the port is open, and no thread polls it.
            self.check("stop", unsafe { ffi::rte_eth_dev_stop(self.id()) })?;
            control.started = false;
        }
        Ok(())
    }

    /// Stops and closes the port; it cannot be opened again before its device is plugged in anew.
    ///
    /// # Errors
    /// As for [`EthDev::stop`]; [`Error::PortClosed`] the second time.
    pub fn close(&self) -> Result<(), Error> {
        let mut control = self.control()?;
        self.stop_locked(&mut control)?;
        removal::unwatch(self.id());
        let mut claimed = self.shared.eal.claimed();
        // SAFETY: the port is open, stopped, and no thread polls it.
        let code = unsafe { close_port(self.name(), ffi::rte_eth_dev_close, self.id()) };
        control.release(self.id(), &mut claimed);
        self.check("close", code)
    }

    /// Stops and closes the port, and takes its device off the bus.
    ///
    /// # Errors
    /// As for [`EthDev::close`].
    pub fn remove(&self) -> Result<(), Error> {
        let mut control = self.control()?;
        self.stop_locked(&mut control)?;
        removal::unwatch(self.id());
        let mut claimed = self.shared.eal.claimed();
        // SAFETY: the port is open, stopped, and no thread polls it.
        let code = unsafe { close_port(self.name(), ffi::dpdk_port_remove_device, self.id()) };
        control.release(self.id(), &mut claimed);
        self.check("remove", code)
    }

    /// Whether the device has vanished by itself since the port was started: it was unplugged, say. The port is as it was
    /// until it is closed, but of no use.
    pub fn has_vanished(&self) -> bool {
        self.control().is_ok() && removal::has_vanished(self.id())
    }

    /// The handle to a receive queue of the started port. There is one at a time.
    ///
    /// # Errors
    /// [`Error::NoSuchQueue`], [`Error::QueueNotReady`].
    pub fn rx_queue(&self, queue: u16) -> Result<RxQueue, Error> {
        let mut control = self.control()?;
        let started = control.started;
        let slot = self.slot(&mut control.rx, "rx", queue)?;
        let lease = self.lease(slot, started, "rx", queue)?;
        Ok(RxQueue::new(Arc::clone(&self.shared), lease, queue))
    }

    /// The handle to a transmit queue of the started port. There is one at a time.
    ///
    /// # Errors
    /// [`Error::NoSuchQueue`], [`Error::QueueNotReady`].
    pub fn tx_queue(&self, queue: u16) -> Result<TxQueue, Error> {
        let mut control = self.control()?;
        let started = control.started;
        let slot = self.slot(&mut control.tx, "tx", queue)?;
        let lease = self.lease(slot, started, "tx", queue)?;
        Ok(TxQueue::new(Arc::clone(&self.shared), lease, queue))
    }

    fn slot<'a>(
        &self,
        queues: &'a mut [Queue],
        direction: &'static str,
        queue: u16,
    ) -> Result<&'a mut Queue, Error> {
        let (port, count) = (self.name(), queues.len());
        let missing = || Error::NoSuchQueue {
            port: port.to_owned(),
            direction,
            queue,
            count,
        };
        queues.get_mut(usize::from(queue)).ok_or_else(missing)
    }

    /// The numbers of descriptors the device allows that are nearest to those asked for.
    fn nearest_descriptors(&self, mut rx: u16, mut tx: u16) -> (u16, u16) {
        // SAFETY: the port is open; DPDK adjusts both numbers in place.
        unsafe { ffi::rte_eth_dev_adjust_nb_rx_tx_desc(self.id(), &mut rx, &mut tx) };
        (rx, tx)
    }

    fn lease(
        &self,
        slot: &mut Queue,
        started: bool,
        direction: &'static str,
        queue: u16,
    ) -> Result<Arc<()>, Error> {
        if !started {
            return Err(self.not_ready(direction, queue, "cannot be polled before the port is started"));
        }
        if slot.is_held() {
            return Err(self.not_ready(direction, queue, "is held by another thread"));
        }
        Ok(Arc::clone(&slot.lease))
    }

    fn not_ready(&self, direction: &'static str, queue: u16, why: &'static str) -> Error {
        Error::QueueNotReady {
            port: self.name().to_owned(),
            direction,
            queue,
            why,
        }
    }

    fn in_range(
        &self,
        info: &DeviceInfo,
        setting: &'static str,
        asked: u16,
        min: u16,
        max: u16,
    ) -> Result<(), Error> {
        if (min..=max).contains(&asked) {
            return Ok(());
        }
        Err(Error::OutOfRange {
            port: self.name().to_owned(),
            driver: info.driver.clone(),
            setting,
            asked: asked.into(),
            min: min.into(),
            max: max.into(),
        })
    }

    /// The control state of the open port.
    fn control(&self) -> Result<MutexGuard<'_, Control>, Error> {
        let control = self.shared.lock();
        if control.closed {
            Err(Error::PortClosed(self.name().to_owned()))
        } else {
            Ok(control)
        }
    }

    /// The control state of the open and stopped port.
    fn stopped(&self, action: &'static str) -> Result<MutexGuard<'_, Control>, Error> {
        let control = self.control()?;
        if control.started {
            return Err(Error::PortStarted {
                action,
                port: self.name().to_owned(),
            });
        }
        Ok(control)
    }

    fn check(&self, action: &'static str, code: c_int) -> Result<(), Error> {
        check(action, &format!("port {}", self.name()), code)
    }
}
