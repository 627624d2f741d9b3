#!/usr/bin/env bash
# image.sh DIR: makes DIR/vmlinuz and DIR/initramfs, the guest of tests and comparisons, out of Debian packages.
# Nothing is installed: packages are downloaded, and unpacked below DIR, whose file `package` then names the kernel.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$1

# What the guest runs, and every shared library of it.
PACKAGES="busybox-static dash iproute2 ibverbs-utils perftest ibverbs-providers libibverbs1 librdmacm1 libibumad3
  libnl-3-200 libnl-route-3-200 libmnl0 libbpf1 libelf1 libbsd0 libmd0 libcap2 libxtables12 zlib1g libc6 libgcc-s1
  libpci3 libudev1"
PROGRAMS="sbin/ip sbin/tc usr/bin/rdma usr/bin/ibv_*pingpong usr/bin/ibv_devinfo usr/bin/ib_*_bw usr/bin/ib_*_lat"
# rdma_rxe wants crc32_generic without saying so; netem of what arrives takes a detour over ifb.
MODULES="virtio_pci virtio_net virtio_console crc32_generic rdma_rxe ib_uverbs
  sch_netem ifb act_mirred sch_ingress cls_matchall"

rm -rf "$dir"
mkdir -p "$dir"/{debs,unpacked,kernel,root}
dir=$(cd "$dir" && pwd)
unpacked=$dir/unpacked root=$dir/root

kernel=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image-/ {print $2; exit}')
[ -n "$kernel" ] || { echo "image: apt knows no linux-image-amd64 (apt-get update?)" >&2; exit 1; }
# As root apt would drop its rights, which cannot write here.
# shellcheck disable=SC2086
(cd "$dir/debs" && apt-get -qq -o APT::Sandbox::User=root download "$kernel" libibverbs-dev $PACKAGES)
for deb in "$dir"/debs/*.deb; do
  case $deb in */linux-image-*) dpkg-deb -x "$deb" "$dir/kernel" ;; *) dpkg-deb -x "$deb" "$unpacked" ;; esac
done

mkdir -p "$root"/{bin,sbin,dev,etc,proc,run,sys,tmp,usr/bin,usr/lib/x86_64-linux-gnu,lib64}
ln -s usr/lib "$root/lib"
cp "$unpacked/bin/busybox" "$root/bin/"
"$root/bin/busybox" --list | grep -vxE "busybox|sh" | while read -r applet; do ln -s busybox "$root/bin/$applet"; done
# busybox's own shell takes its applets for the programs of the same name: ip.
cp "$unpacked/bin/dash" "$root/bin/"
ln -s dash "$root/bin/sh"
ln -s ../bin/busybox "$root/sbin/modprobe"
# shellcheck disable=SC2086
(cd "$unpacked" && cp -t "$root/usr/bin" $PROGRAMS)
for libraries in lib/x86_64-linux-gnu usr/lib/x86_64-linux-gnu; do
  cp -a "$unpacked/$libraries"/*.so* "$root/usr/lib/x86_64-linux-gnu/"
done
# -L: the package's link leads to where the libraries are no longer.
cp -L "$unpacked"/lib64/ld-linux-x86-64.so.2 "$root/lib64/" 2>/dev/null ||
  cp "$unpacked"/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 "$root/lib64/"
mkdir -p "$root/etc/libibverbs.d" "$root/usr/lib/x86_64-linux-gnu/libibverbs"
cp "$unpacked/etc/libibverbs.d/rxe.driver" "$root/etc/libibverbs.d/"
cp -a "$unpacked"/usr/lib/x86_64-linux-gnu/libibverbs/librxe-* "$root/usr/lib/x86_64-linux-gnu/libibverbs/"

version=$(ls "$dir/kernel/lib/modules")
"$root/bin/busybox" depmod -b "$dir/kernel" "$version"
for module in $MODULES; do
  line=$(grep "/$module.ko:" "$dir/kernel/lib/modules/$version/modules.dep") ||
    { echo "image: $kernel has no module $module" >&2; exit 1; }
  for file in ${line//:/}; do
    install -D -m 644 "$dir/kernel/lib/modules/$version/$file" "$root/usr/lib/modules/$version/$file"
  done
done
cp "$dir/kernel/lib/modules/$version"/modules.builtin* "$root/usr/lib/modules/$version/"
"$root/bin/busybox" depmod -b "$root" "$version"
cp "$dir/kernel/boot/vmlinuz-$version" "$dir/vmlinuz"

gcc -std=gnu11 -O2 -Wall -Wextra -Werror -o "$root/usr/bin/verbs-peer" "$here/files/peer.c" \
  -I "$unpacked/usr/include" -L "$unpacked/usr/lib/x86_64-linux-gnu" -libverbs
install -m 755 "$here/files/init" "$root/init"
install -m 755 "$here/files/agent" "$root/usr/bin/agent"
# Not compressed: the guest's CPU is emulated.
(cd "$root" && find . | bin/busybox cpio -o -H newc >"$dir/initramfs" 2>/dev/null)
echo "$kernel" >"$dir/package"
rm -rf "$dir"/{debs,unpacked,kernel,root}
