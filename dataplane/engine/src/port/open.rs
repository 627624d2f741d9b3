//! From a list of what is wanted to opened ports.

#[cfg(feature = "dpdk")]
use super::dpdk::{self, Dpdk};
use super::{DeviceSpec, HeapPool, OpenPort, PortError, PortSpec, RingEnd, capture, fault, ring_pair_of};

/// Opens ports, and answers them in the order of `specs`. If one fails, those opened before are closed.
///
/// `eal_args` start DPDK, once in the life of the process and only if a port needs it; the virtual devices of ports
/// may be among them (`--vdev=...`) or not. PCI functions should be (`-a ADDRESS`): without any, EAL takes all it
/// can. Control thread only.
///
/// # Errors
/// See [`PortError`].
pub fn open_all(specs: &[PortSpec], eal_args: &[String]) -> Result<Vec<OpenPort>, PortError> {
    crate::nonblocking::might_block();
    let mut opener = Opener {
        specs,
        eal_args,
        opened: specs.iter().map(|_| None).collect(),
        #[cfg(feature = "dpdk")]
        dpdk: None,
    };
    opener.check_names()?;
    for index in opener.order() {
        if opener.opened[index].is_none() {
            opener.open(index)?;
        }
    }
    let opened = opener.opened.into_iter().flatten();
    opened.zip(specs).map(|(port, spec)| wrap(port, spec)).collect()
}

/// Puts around a port what its specification asks for. The capture is next to the device: it shows frames as they
/// are on the link, after faults when sent and before them when received.
fn wrap(mut port: OpenPort, spec: &PortSpec) -> Result<OpenPort, PortError> {
    if let Some(capture) = &spec.capture {
        port = capture::wrap(port, capture).map_err(|source| PortError::Capture {
            port: spec.name.clone(),
            path: capture.path.clone(),
            source,
        })?;
    }
    if let Some(faults) = &spec.faults {
        port = fault::wrap(port, faults);
    }
    Ok(port)
}

struct Opener<'a> {
    specs: &'a [PortSpec],
    #[cfg_attr(not(feature = "dpdk"), allow(dead_code, reason = "only DPDK takes arguments"))]
    eal_args: &'a [String],
    opened: Vec<Option<OpenPort>>,
    #[cfg(feature = "dpdk")]
    dpdk: Option<Dpdk>,
}

impl Opener<'_> {
    fn check_names(&self) -> Result<(), PortError> {
        for (index, spec) in self.specs.iter().enumerate() {
            if self.specs[..index].iter().any(|other| other.name == spec.name) {
                return Err(PortError::SameName(spec.name.clone()));
            }
        }
        Ok(())
    }

    /// The order to open in: listeners before those who connect to them when they are made.
    fn order(&self) -> Vec<usize> {
        #[cfg(feature = "dpdk")]
        let first = |index: &usize| match &self.specs[*index].device {
            DeviceSpec::Vdev(vdev) => dpdk::comes_first(vdev),
            _ => false,
        };
        #[cfg(not(feature = "dpdk"))]
        let first = |_: &usize| false;
        let (mut order, rest): (Vec<_>, Vec<_>) = (0..self.specs.len()).partition(first);
        order.extend(rest);
        order
    }

    /// Opens one port, and the other end with it if it is a ring.
    fn open(&mut self, index: usize) -> Result<(), PortError> {
        let specs = self.specs;
        let spec = &specs[index];
        match &spec.device {
            DeviceSpec::SoftRing { peer } => {
                let other = self.peer(index, peer)?;
                self.open_soft(index, other);
            }
            #[cfg(not(feature = "dpdk"))]
            DeviceSpec::Ring { peer } => {
                let other = self.peer(index, peer)?;
                self.open_soft(index, other);
            }
            #[cfg(feature = "dpdk")]
            DeviceSpec::Ring { peer } => {
                let other = self.peer(index, peer)?;
                let (a, b) = self.dpdk(index)?.open_rings(spec, &specs[other])?;
                (self.opened[index], self.opened[other]) = (Some(a), Some(b));
            }
            #[cfg(feature = "dpdk")]
            DeviceSpec::Pci(address) => self.opened[index] = Some(self.dpdk(index)?.open_pci(spec, address)?),
            #[cfg(feature = "dpdk")]
            DeviceSpec::Vdev(vdev) => self.opened[index] = Some(self.dpdk(index)?.open_vdev(spec, vdev)?),
            #[cfg(not(feature = "dpdk"))]
            DeviceSpec::Pci(device) | DeviceSpec::Vdev(device) => {
                return Err(PortError::NotBuilt {
                    port: spec.name.clone(),
                    device: device.clone(),
                });
            }
        }
        Ok(())
    }

    #[cfg(feature = "dpdk")]
    fn dpdk(&mut self, index: usize) -> Result<&Dpdk, PortError> {
        let dpdk = match self.dpdk.take() {
            Some(dpdk) => dpdk,
            None => Dpdk::start(&self.specs[index], self.specs, self.eal_args)?,
        };
        Ok(self.dpdk.insert(dpdk))
    }

    fn open_soft(&mut self, index: usize, other: usize) {
        let (a, b) = (&self.specs[index], &self.specs[other]);
        let frames = [a, b].map(|end| end.rx_descriptors.max(end.tx_descriptors));
        let end = |spec: &PortSpec| RingEnd {
            name: spec.name.clone(),
            mac: spec.mac,
            mtu: spec.mtu,
            pool: HeapPool::for_mtu(spec.buffers, spec.mtu),
        };
        let frames = usize::from(frames[0].max(frames[1]));
        let (a, b) = ring_pair_of(end(a), end(b), a.queues.min(b.queues), frames);
        (self.opened[index], self.opened[other]) = (Some(a), Some(b));
    }

    /// The other end of the ring at `index`.
    fn peer(&self, index: usize, peer: &str) -> Result<usize, PortError> {
        let spec = &self.specs[index];
        let wrong = |why| PortError::Peer {
            port: spec.name.clone(),
            peer: peer.to_owned(),
            why,
        };
        let other = self.specs.iter().position(|other| other.name == peer);
        let other = other.ok_or_else(|| wrong("is not among the ports"))?;
        if other == index {
            return Err(wrong("is the port itself"));
        }
        let same_kind = match (&spec.device, &self.specs[other].device) {
            (DeviceSpec::Ring { .. }, DeviceSpec::Ring { peer }) => Some(peer),
            (DeviceSpec::SoftRing { .. }, DeviceSpec::SoftRing { peer }) => Some(peer),
            _ => None,
        };
        match same_kind {
            Some(back) if *back == spec.name => Ok(other),
            Some(_) => Err(wrong("names another port as its own peer")),
            None => Err(wrong("is not a ring of the same kind")),
        }
    }
}
