#include "wrapper.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* What the Rust layer takes for granted. */
_Static_assert(RTE_VER_YEAR > 22 || (RTE_VER_YEAR == 22 && RTE_VER_MONTH >= 11), "DPDK 22.11 or later");
_Static_assert(sizeof(struct rte_ether_addr) == 6, "a MAC address is passed as [u8; 6]");
_Static_assert(_Alignof(struct rte_ether_addr) <= 2, "a MAC address has no stricter alignment than 2");
_Static_assert(sizeof(struct rte_mbuf) == 2 * RTE_CACHE_LINE_MIN_SIZE, "an mbuf is two cache lines");
_Static_assert(offsetof(struct rte_mbuf, pool) < RTE_CACHE_LINE_MIN_SIZE, "receive fields share a line");
_Static_assert(offsetof(struct rte_mbuf, data_len) == offsetof(struct rte_mbuf, pkt_len) + 4,
	       "the two lengths are neighbours");
_Static_assert(sizeof(((struct rte_mbuf *)0)->data_off) == 2, "offsets are 16 bits");
_Static_assert(sizeof(((struct rte_mbuf *)0)->pkt_len) == 4, "frame lengths are 32 bits");

#define WHOLE(s) { #s, 0, sizeof(struct s) }
#define FIELD(s, f) { #s "." #f, offsetof(struct s, f), sizeof(((struct s *)0)->f) }

static const struct dpdk_layout layouts[] = {
	WHOLE(rte_mbuf),
	FIELD(rte_mbuf, buf_addr),
	FIELD(rte_mbuf, data_off),
	FIELD(rte_mbuf, refcnt),
	FIELD(rte_mbuf, nb_segs),
	FIELD(rte_mbuf, port),
	FIELD(rte_mbuf, ol_flags),
	FIELD(rte_mbuf, pkt_len),
	FIELD(rte_mbuf, data_len),
	FIELD(rte_mbuf, vlan_tci),
	FIELD(rte_mbuf, buf_len),
	FIELD(rte_mbuf, pool),
	FIELD(rte_mbuf, next),
	WHOLE(rte_ether_addr),
	FIELD(rte_ether_addr, addr_bytes),
	WHOLE(rte_eth_stats),
	FIELD(rte_eth_stats, ipackets),
	FIELD(rte_eth_stats, opackets),
	FIELD(rte_eth_stats, ibytes),
	FIELD(rte_eth_stats, obytes),
	FIELD(rte_eth_stats, imissed),
	FIELD(rte_eth_stats, ierrors),
	FIELD(rte_eth_stats, oerrors),
	FIELD(rte_eth_stats, rx_nombuf),
	WHOLE(rte_rcu_qsbr),
	FIELD(rte_rcu_qsbr, token),
	FIELD(rte_rcu_qsbr, num_threads),
	WHOLE(dpdk_port_info),
	FIELD(dpdk_port_info, device),
	FIELD(dpdk_port_info, max_frame),
	FIELD(dpdk_port_info, tx_desc_max),
	WHOLE(dpdk_port_conf),
	FIELD(dpdk_port_conf, tx_queues),
	WHOLE(dpdk_link),
	FIELD(dpdk_link, autoneg),
};

const struct dpdk_layout *dpdk_layouts(size_t *count)
{
	*count = sizeof(layouts) / sizeof(layouts[0]);
	return layouts;
}

int dpdk_errno(void)
{
	return rte_errno;
}

uint32_t dpdk_lcore_id(void)
{
	return rte_lcore_id();
}

int dpdk_log_to_stderr(void)
{
	return rte_openlog_stream(stderr);
}

struct rte_mbuf *dpdk_mbuf_alloc(struct rte_mempool *pool)
{
	return rte_pktmbuf_alloc(pool);
}

int dpdk_mbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **bufs, uint32_t n)
{
	return rte_pktmbuf_alloc_bulk(pool, bufs, n);
}

void dpdk_mbuf_free(struct rte_mbuf *m)
{
	rte_pktmbuf_free(m);
}

int dpdk_mbuf_linearise(struct rte_mbuf *m)
{
	return rte_pktmbuf_linearize(m);
}

int dpdk_mbuf_chain(struct rte_mbuf *head, struct rte_mbuf *tail)
{
	return rte_pktmbuf_chain(head, tail);
}

bool dpdk_pool_is_full(const struct rte_mempool *pool)
{
	return rte_mempool_full(pool) != 0;
}

uint32_t dpdk_ring_dequeue_burst(struct rte_ring *ring, struct rte_mbuf **bufs, uint32_t n)
{
	return rte_ring_dequeue_burst(ring, (void **)bufs, n, NULL);
}

uint16_t dpdk_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **bufs, uint16_t n)
{
	return rte_eth_rx_burst(port, queue, bufs, n);
}

uint16_t dpdk_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **bufs, uint16_t n)
{
	return rte_eth_tx_burst(port, queue, bufs, n);
}

int dpdk_port_info(uint16_t port, struct dpdk_port_info *info)
{
	struct rte_eth_dev_info raw;
	int ret = rte_eth_dev_info_get(port, &raw);

	if (ret != 0)
		return ret;
	*info = (struct dpdk_port_info){
		.driver = raw.driver_name,
		.device = raw.device ? rte_dev_name(raw.device) : NULL,
		.rx_offloads = raw.rx_offload_capa,
		.tx_offloads = raw.tx_offload_capa,
		.rss_types = raw.flow_type_rss_offloads,
		.if_index = raw.if_index,
		.max_frame = raw.max_rx_pktlen,
		.socket = rte_eth_dev_socket_id(port),
		.min_mtu = raw.min_mtu,
		.max_mtu = raw.max_mtu,
		.max_rx_queues = raw.max_rx_queues,
		.max_tx_queues = raw.max_tx_queues,
		.rx_desc_min = raw.rx_desc_lim.nb_min,
		.rx_desc_max = raw.rx_desc_lim.nb_max,
		.tx_desc_min = raw.tx_desc_lim.nb_min,
		.tx_desc_max = raw.tx_desc_lim.nb_max,
	};
	return 0;
}

int dpdk_port_configure(uint16_t port, const struct dpdk_port_conf *conf)
{
	struct rte_eth_dev_info info;
	struct rte_eth_conf raw;

	memset(&raw, 0, sizeof(raw));
	raw.rxmode.mtu = conf->mtu;
	raw.rxmode.offloads = conf->rx_offloads;
	raw.rxmode.mq_mode = RTE_ETH_MQ_RX_NONE;
	if (conf->rss_types != 0) {
		raw.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
		raw.rx_adv_conf.rss_conf.rss_hf = conf->rss_types;
	}
	/* Drivers that cannot tell refuse to be asked. */
	if (rte_eth_dev_info_get(port, &info) == 0 && info.dev_flags != NULL)
		raw.intr_conf.rmv = (*info.dev_flags & RTE_ETH_DEV_INTR_RMV) != 0;
	return rte_eth_dev_configure(port, conf->rx_queues, conf->tx_queues, &raw);
}

int dpdk_port_link(uint16_t port, struct dpdk_link *link)
{
	struct rte_eth_link raw;
	int ret = rte_eth_link_get_nowait(port, &raw);

	if (ret != 0)
		return ret;
	*link = (struct dpdk_link){
		.speed_mbps = raw.link_speed,
		.up = raw.link_status == RTE_ETH_LINK_UP,
		.full_duplex = raw.link_duplex == RTE_ETH_LINK_FULL_DUPLEX,
		.autoneg = raw.link_autoneg == RTE_ETH_LINK_AUTONEG,
	};
	return 0;
}

/* Closes the port and takes its device off the bus; the port id is free afterwards. */
int dpdk_port_remove_device(uint16_t port)
{
	struct rte_eth_dev_info raw;
	struct rte_device *device;
	int ret = rte_eth_dev_info_get(port, &raw);

	if (ret != 0)
		return ret;
	device = raw.device;
	ret = rte_eth_dev_close(port);
	if (ret != 0)
		return ret;
	return device ? rte_dev_remove(device) : 0;
}

int dpdk_removal_register(uint16_t port, rte_eth_dev_cb_fn removed)
{
	return rte_eth_dev_callback_register(port, RTE_ETH_EVENT_INTR_RMV, removed, NULL);
}

int dpdk_removal_unregister(uint16_t port, rte_eth_dev_cb_fn removed)
{
	return rte_eth_dev_callback_unregister(port, RTE_ETH_EVENT_INTR_RMV, removed, NULL);
}

/* Of the interface for drivers, whose header is not among those installed. */
struct rte_eth_dev *rte_eth_dev_allocated(const char *name);
int rte_eth_dev_callback_process(struct rte_eth_dev *dev, enum rte_eth_event_type event, void *result);

/* What a driver does when its device is unplugged. */
int dpdk_removal_raise(uint16_t port)
{
	char name[RTE_ETH_NAME_MAX_LEN];
	struct rte_eth_dev *dev;

	if (rte_eth_dev_get_name_by_port(port, name) != 0)
		return -ENODEV;
	dev = rte_eth_dev_allocated(name);
	return dev ? rte_eth_dev_callback_process(dev, RTE_ETH_EVENT_INTR_RMV, NULL) : -ENODEV;
}

void dpdk_qsbr_online(struct rte_rcu_qsbr *v, uint32_t thread)
{
	rte_rcu_qsbr_thread_online(v, thread);
}

void dpdk_qsbr_offline(struct rte_rcu_qsbr *v, uint32_t thread)
{
	rte_rcu_qsbr_thread_offline(v, thread);
}

void dpdk_qsbr_quiescent(struct rte_rcu_qsbr *v, uint32_t thread)
{
	rte_rcu_qsbr_quiescent(v, thread);
}

uint64_t dpdk_qsbr_start(struct rte_rcu_qsbr *v)
{
	return rte_rcu_qsbr_start(v);
}

int dpdk_qsbr_check(struct rte_rcu_qsbr *v, uint64_t token, bool wait)
{
	return rte_rcu_qsbr_check(v, token, wait);
}
