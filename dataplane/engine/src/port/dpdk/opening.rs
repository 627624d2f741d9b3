//! A device on its way to an opened port.
use std::sync::{
    Arc, PoisonError,
    atomic::{AtomicU32, Ordering},
};

use dpdk_sys::{DeviceInfo, Eal, Error, EthDev, Mempool, PoolConfig, PortConfig, Rss};

use super::{
    failure,
    link::{DpdkLink, SharedPools, interface},
    pool::MbufPool,
    queue::DpdkPort,
    vdev::Vdev,
};
use crate::port::{OpenPort, Port, PortCaps, PortError, PortSpec, RssMode, mac_of_name};

/// Ethernet header in bytes.
const ETHERNET: usize = 14;

/// A port on its way up.
pub(super) struct Opening<'a> {
    eal: &'a Eal,
    spec: &'a PortSpec,
    dev: EthDev,
    vdev: Option<&'a Vdev>,
    rings: Option<&'a SharedPools>,
}

impl<'a> Opening<'a> {
    pub fn new(eal: &'a Eal, spec: &'a PortSpec, dev: EthDev) -> Self {
        Opening {
            eal,
            spec,
            dev,
            vdev: None,
            rings: None,
        }
    }

    /// The device is this virtual one.
    pub fn of_vdev(mut self, vdev: &'a Vdev) -> Self {
        self.vdev = Some(vdev);
        self
    }

    /// The device is made of rings; the pools of both ends are kept in `pools`.
    pub fn of_rings(mut self, pools: &'a SharedPools) -> Self {
        self.rings = Some(pools);
        self
    }

    /// From the bare device to a started port.
    pub fn finish(self) -> Result<OpenPort, PortError> {
        let info = self.step("query", self.dev.info())?;
        let queues = self.queues(&info);
        let applied = self.dev.configure(&PortConfig {
            rx_queues: queues,
            tx_queues: queues,
            mtu: self.spec.mtu,
            rss: (self.spec.rss != RssMode::Off).then_some(Rss::UDP),
            // A tag left in the frame costs nothing to read, and shows in captures.
            vlan_strip: false,
        });
        let applied = self.step("configure", applied)?;
        if self.spec.rss == RssMode::On && queues > 1 && applied.rss.is_none() {
            let help = "Use one queue, or let RSS be `auto`".to_owned();
            return Err(self.failed("configure", &"it cannot spread frames by RSS", help));
        }
        let pool = self.make_pool(&info)?;
        for queue in 0..queues {
            let (rx, tx) = (self.spec.rx_descriptors, self.spec.tx_descriptors);
            self.step("set up", self.dev.rx_queue_setup(queue, rx, info.socket, &pool.0))?;
            self.step("set up", self.dev.tx_queue_setup(queue, tx, info.socket))?;
        }
        self.step("start", self.dev.start())?;
        self.raise_mtu(&info)?;
        let mac = self.address()?;

        let caps = PortCaps {
            max_frame: usize::from(self.spec.mtu) + ETHERNET,
            rss: applied.rss.is_some(),
            needs_polling: true,
        };
        let mut ports: Vec<Box<dyn Port>> = Vec::new();
        for queue in 0..queues {
            let rx = self.step("poll", self.dev.rx_queue(queue))?;
            let tx = self.step("poll", self.dev.tx_queue(queue))?;
            ports.push(Box::new(DpdkPort::new(rx, tx, caps, pool.1.clone())));
        }
        let pools = self.rings.cloned().unwrap_or_default();
        pools.lock().unwrap_or_else(PoisonError::into_inner).push(pool.0);
        // Rings take themselves off the bus.
        let remove = self.rings.is_none();
        Ok(OpenPort {
            name: self.spec.name.clone(),
            driver: info.driver,
            mac,
            mtu: self.spec.mtu,
            numa_node: info.socket,
            queues: ports,
            pool: Arc::new(pool.1),
            link: Box::new(DpdkLink::new(self.dev, remove, info.if_index, pools)),
        })
    }

    /// As many queue pairs as wanted and there are.
    fn queues(&self, info: &DeviceInfo) -> u16 {
        let most = info.max_rx_queues.min(info.max_tx_queues).max(1);
        if self.spec.queues > most {
            tracing::warn!(
                port = %self.spec.name,
                wanted = self.spec.queues,
                queues = most,
                driver = %info.driver,
                "the device has fewer queues than wanted; the other poll cores get frames handed over"
            );
        }
        self.spec.queues.clamp(1, most)
    }

    fn make_pool(&self, info: &DeviceInfo) -> Result<(Mempool, MbufPool), PortError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let data_room = Mempool::data_room_for_mtu(self.spec.mtu)
            .and_then(|by_mtu| self.vdev.map_or(Some(by_mtu), |vdev| vdev.data_room(by_mtu)));
        let Some(data_room) = data_room else {
            let help = "Use a smaller MTU, or a smaller framesz".to_owned();
            return Err(self.failed("make buffers for", &"they would be larger than 65535 bytes", help));
        };
        let mut config = PoolConfig {
            name: format!("rnic_{}", NUMBER.fetch_add(1, Ordering::Relaxed)),
            buffers: self.spec.buffers,
            cache: (self.spec.buffers / 32).min(256),
            data_room,
            socket: info.socket,
        };
        let mut pool = Mempool::create(self.eal, &config);
        if pool.is_err() && config.socket.take().is_some() {
            tracing::warn!(port = %self.spec.name, "no memory for packet buffers on the port's own NUMA node");
            pool = Mempool::create(self.eal, &config);
        }
        let pool = pool.map_err(|error| {
            let help = "Give DPDK more memory, or the port fewer buffers".to_owned();
            self.failed("make buffers for", &error, help)
        })?;
        Ok((pool.clone(), MbufPool::new(pool, data_room)))
    }

    /// A kernel interface behind the device has an MTU of its own; beyond it, frames would be lost without a word.
    fn raise_mtu(&self, info: &DeviceInfo) -> Result<(), PortError> {
        let Some((name, mtu)) = info.if_index.and_then(interface) else {
            return Ok(());
        };
        if mtu >= self.spec.mtu {
            return Ok(());
        }
        let set = self.dev.set_mtu(self.spec.mtu);
        let now = info.if_index.and_then(interface).map_or(mtu, |(_, mtu)| mtu);
        if now >= self.spec.mtu {
            return Ok(());
        }
        let why = match set {
            Err(error) => format!("the interface has an MTU of {now}, and {error}"),
            Ok(()) => format!("the interface keeps its MTU of {now}"),
        };
        let help = format!(
            "Say `ip link set dev {name} mtu {}`, or lower the port's mtu",
            self.spec.mtu
        );
        Err(self.failed("set the MTU of", &why, help))
    }

    /// Sets or finds the MAC address, and sees to it that frames for it and all multicast come in.
    fn address(&self) -> Result<[u8; 6], PortError> {
        let own = self.step("query", self.dev.mac_addr())?;
        let made = || mac_of_name(&self.spec.name);
        let lacking = own == [0; 6] || self.vdev.is_some_and(Vdev::lacks_address);
        let mac = self
            .spec
            .mac
            .unwrap_or_else(|| if lacking { made() } else { own });
        let filter_fits = mac == own || self.dev.set_mac_addr(mac).is_ok();
        // IPv6 neighbours are found by multicast.
        let multicast = self.dev.set_allmulticast(true).is_ok();
        if let Err(error) = self.dev.set_promiscuous(!(filter_fits && multicast))
            && !error.is_unsupported()
        {
            tracing::warn!(port = %self.spec.name, %error, "the port may miss frames for its address");
        }
        Ok(mac)
    }

    fn step<T>(&self, action: &'static str, result: Result<T, Error>) -> Result<T, PortError> {
        result.map_err(|error| {
            let help = match &error {
                Error::OutOfRange { .. } => "Choose a value in that range".to_owned(),
                _ => self.vdev.map_or_else(
                    || "DPDK's own lines before this one say more".to_owned(),
                    Vdev::help,
                ),
            };
            self.failed(action, &error, help)
        })
    }

    fn failed(&self, action: &'static str, why: &dyn std::fmt::Display, help: String) -> PortError {
        failure(self.spec, action, self.dev.name(), why, help)
    }
}
