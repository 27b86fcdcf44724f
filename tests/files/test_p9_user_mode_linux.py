"""User-Mode Linux: the 9P client of a real kernel, over TCP, at our server."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest
from tests.files.kernel_9p import HERE, kernel_client, make_network, mounting
from tests.files.p9_recording import Recorder, dissect, write_pcap
from tests.network.namespace import isolated

from powervio.files.p9_server import P9Server
from powervio.files.tree import Tree

SCRIPT = """
mount -t hostfs -o ro,/usr none /usr
MOUNT_IT && echo MOUNTED
grep /mnt /proc/mounts
cd /mnt
echo "READ $(md5sum <given)"
head -c 3000000 /dev/urandom >new && sync && echo "WROTE $(md5sum <new)"
cat new new >>given && echo "APPENDED $(md5sum <given)"
mkdir -p a/b/c && cp -a /usr/lib/terminfo a/b/ && echo COPIED
diff -r /usr/lib/terminfo a/b/terminfo && echo SAME
ln -s nowhere a/link && [ "$(readlink a/link)" = nowhere ] && echo LINKED
ln new a/hard && [ "$(stat -c %h new)" = 2 ] && echo HARD
mkfifo a/fifo && mknod a/null c 1 3 && cat given >a/null && echo NODES
mv a/b/c a/moved && rmdir a/moved && mv a/b/terminfo a/t && rm -r a/b && echo MOVED
chown 12:34 new && chmod 4751 new && touch -d '2001-02-03 04:05:06' new && stat -c 'FACTS %a %u %g %Y %s' new
exec 3<>gone && rm gone && echo hello >&3 && cat /proc/self/fd/3 && exec 3>&- && echo GONE
sleep 100 3>locked & sleep 0.1
( flock -n 9 && echo LOCKED && ! flock -n locked true && echo KEPT ) 9>locked
flock -n locked true && echo FREE
kill %1
i=0; while [ $i -lt 300 ]; do : >many$i; i=$((i+1)); done
[ $(ls | grep -c many) = 300 ] && rm many* && [ $(ls | grep -c many) = 0 ] && echo MANY
mkdir deep; (cd deep; i=0; while [ $i -lt 60 ]; do mkdir d; cd d; i=$((i+1)); done; echo x >end)
[ $(find deep -name end | wc -l) = 1 ] && rm -r deep && echo DEEP
truncate -s 10 new && [ $(wc -c <new) = 10 ] && truncate -s 5000000000 big &&
    [ $(stat -c %s big) = 5000000000 ] && echo CUT
echo last | dd of=big bs=1 seek=4999999995 conv=notrunc 2>/dev/null && [ "$(tail -c 5 big)" = last ] && echo FAR
df /mnt | tail -1 | grep -q . && echo FREED
cat none 2>&1 | grep -q 'No such file' && mkdir a 2>&1 | grep -q 'File exists' &&
    rmdir a 2>&1 | grep -q 'not empty' && echo ERRORS
ls $(printf '%0300d' 0) 2>&1 | grep -q 'name too long' && echo LONG
cd / && umount /mnt && echo UNMOUNTED
"""
WORDS = (
    "MOUNTED COPIED SAME LINKED HARD NODES MOVED hello GONE LOCKED KEPT FREE MANY DEEP CUT FAR FREED ERRORS LONG"
    " UNMOUNTED"
)


@pytest.mark.parametrize(
    ("options", "msize"), [("cache=none,access=user", 1048576), ("cache=loose,access=client", 65536)]
)
@isolated
def test_linux_mounts_a_share(tmp_path: Path, options: str, msize: int) -> None:
    make_network()
    share = tmp_path / "share"
    share.mkdir()
    given = os.urandom(1_234_567)
    (share / "given").write_bytes(given)
    path = f"unix:{tmp_path / 'socket'}"
    with (
        Tree(share) as tree,
        P9Server(tree, [path]) as server,
        Recorder(path, HERE) as recorder,
    ):
        mount = mounting(recorder.port, f"msize={msize},{options}")
        with kernel_client(tmp_path, SCRIPT.replace("MOUNT_IT", mount)) as guest:
            console = guest.finish()
    said = console.split()
    assert [word for word in WORDS.split() if word not in said] == [], console
    assert hashlib.md5(given).hexdigest() in console
    assert "FACTS 4751 12 34 981173106 3000000" in console
    assert sorted(os.listdir(share)) == ["a", "big", "given", "locked", "new"]
    assert stat.S_ISFIFO((share / "a/fifo").stat().st_mode)
    assert (share / "a/null").stat().st_rdev == os.makedev(1, 3)
    written = hashlib.md5((share / "given").read_bytes()).hexdigest()
    assert f"APPENDED {written}" in console
    assert (server.counters.connections, tree.open_count) == (1, 0)
    capture = tmp_path / "run.pcap"
    write_pcap(capture, recorder.messages)
    assert len(dissect(capture)) == len(recorder.messages)
