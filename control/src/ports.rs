//! From the configuration to opened ports: the one place where the words of both are known.

use rnic_config::{Config, Device, FaultRates, Machine, Port, Rss, eal_args_on};
use rnic_engine::port::{
    self, CaptureSpec, DeviceSpec, FaultSpec, OpenPort, PortError, PortSpec, RssMode, open_all,
};

/// Opens every port, in the order of the configuration. DPDK gets the CPUs the daemon may run on.
///
/// # Errors
/// See [`PortError`].
pub fn open(config: &Config, machine: &Machine) -> Result<Vec<OpenPort>, PortError> {
    open_all(&specs(config), &eal_args_on(config, machine))
}

/// What is to be opened.
pub fn specs(config: &Config) -> Vec<PortSpec> {
    let cores = config.poll_core_count();
    config.ports.iter().map(|port| spec(port, cores)).collect()
}

fn spec(port: &Port, cores: u16) -> PortSpec {
    PortSpec {
        name: port.name.to_string(),
        device: match &port.device {
            Device::Pci(address) => DeviceSpec::Pci(address.to_string()),
            Device::Vdev(vdev) => DeviceSpec::Vdev(vdev.clone()),
            Device::Ring(ring) => DeviceSpec::Ring {
                peer: ring.peer.to_string(),
            },
        },
        mac: port.mac.map(|mac| mac.0),
        mtu: port.link_mtu(),
        queues: port.queue_count(cores),
        rx_descriptors: port.rx_descriptors,
        tx_descriptors: port.tx_descriptors,
        buffers: port.buffer_count(cores),
        rss: match port.rss {
            Rss::Auto => RssMode::Auto,
            Rss::On => RssMode::On,
            Rss::Off => RssMode::Off,
        },
        capture: port.active_capture().map(|capture| CaptureSpec {
            path: capture.file.clone(),
            limit_bytes: capture.limit.bytes(),
        }),
        faults: port.faults.as_ref().map(|faults| FaultSpec {
            seed: faults.seed,
            rx: rates(&faults.rx),
            tx: rates(&faults.tx),
        }),
    }
}

fn rates(rates: &FaultRates) -> port::FaultRates {
    port::FaultRates {
        drop_ppm: rates.drop.parts_per_million(),
        duplicate_ppm: rates.duplicate.parts_per_million(),
        reorder_ppm: rates.reorder.parts_per_million(),
        corrupt_ppm: rates.corrupt.parts_per_million(),
        ecn_mark_ppm: rates.ecn_mark.parts_per_million(),
        delay_ns: u64::try_from(rates.delay.duration().as_nanos()).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_a_port_reaches_its_specification() {
        let text = "
version: 1
cores: {count: 2}
ports:
  - name: rnic0
    device: {vdev: net_null0}
    mtu: 4200
    mac: '02:00:00:00:00:09'
    queues: 2
    rx_descriptors: 128
    tx_descriptors: 256
    buffers: 4096
    rss: 'off'
    capture: {file: /tmp/x.pcapng, limit: 1MiB}
    faults: {seed: 7, tx: {drop: 1%, delay: 2us}}
  - {name: rnic1, device: {pci: '0000:01:00.0'}, capture: {file: ''}}
";
        let config = Config::parse(text, "test.yaml").unwrap_or_else(|error| panic!("{error}"));
        let specs = specs(&config);
        let [first, second] = &specs[..] else {
            panic!("two ports")
        };
        assert_eq!(first.device, DeviceSpec::Vdev("net_null0".into()));
        assert_eq!((first.mtu, first.queues, first.rss), (4200, 2, RssMode::Off));
        assert_eq!(
            (first.rx_descriptors, first.tx_descriptors, first.buffers),
            (128, 256, 4096)
        );
        assert_eq!(first.mac, Some([2, 0, 0, 0, 0, 9]));
        assert_eq!(first.capture.as_ref().map(|c| c.limit_bytes), Some(1 << 20));
        let faults = first.faults.as_ref().unwrap();
        assert_eq!(
            (
                faults.seed,
                faults.tx.drop_ppm,
                faults.tx.delay_ns,
                faults.rx.drop_ppm
            ),
            (7, 10_000, 2_000, 0)
        );
        assert_eq!(second.device, DeviceSpec::Pci("0000:01:00.0".into()));
        assert!(second.capture.is_none() && second.mac.is_none());
    }
}
