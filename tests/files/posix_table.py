"""The POSIX table: file calls, in which situation, and what they are to do. `posix_suite` says how it is read.

It has what Linux's ext4 does, which is what POSIX asks for where that leaves no choice. A case whose outcome a file
system may choose is not here, or says all that is right. Names in braces are that many bytes long.
"""

from __future__ import annotations

TABLE = (
    r"""
# -- open, create

create makes an empty file with the mode
    alice create f 0640
    alice stat f type,mode,nlink,size,uid,gid -> = f,0640,1,0,10001,10001
create of a name that is there with O_EXCL
    alice create f 0640
    alice create f 0640 -> EEXIST
    bob create f 0640 -> EEXIST
    alice mkdir d 0755
    alice create d 0640 -> EEXIST
    alice symlink nowhere l
    alice create l 0640 -> EEXIST
open without O_CREAT of a name that is not there
    alice open f O_RDONLY -> ENOENT
    alice open f O_RDWR|O_TRUNC -> ENOENT
open with O_CREAT of a name that is there leaves it as it is
    alice create f 0600
    alice write f text
    alice open f O_RDWR|O_CREAT 0777
    alice stat f mode,size -> = 0600,4
open with O_TRUNC empties the file and stamps it
    alice create f 0600
    alice write f text
    alice mark f
    alice open f O_WRONLY|O_TRUNC
    alice stat f size -> = 0
    alice changed f -> = cm
open honours the umask
    alice umask 0027
    alice create f 0666
    alice mkdir d 0777
    alice stat f mode -> = 0640
    alice stat d mode -> = 0750
open of a file whose mode denies it
    alice create f 0600
    bob open f O_RDONLY -> EACCES
    bob open f O_WRONLY -> EACCES
    alice chmod f 0004
    bob open f O_RDONLY
    bob open f O_WRONLY -> EACCES
    alice open f O_RDONLY -> EACCES
    root open f O_RDWR
open by group and by supplementary group
    root create f 0060
    root chown f 0 10003
    root chmod f 0060
    alice open f O_RDWR
    bob open f O_RDONLY -> EACCES
    root chown f 0 10002
    root chmod f 0060
    bob open f O_RDWR
    alice open f O_RDONLY -> EACCES
owner's bits count for the owner though the group's would allow
    alice create f 0060
    alice open f O_RDONLY -> EACCES
    root chown f 0 10001
    alice open f O_RDONLY
a file that is created may be written though its mode denies it
    alice openas 1 f O_RDWR|O_CREAT|O_EXCL 0000
    alice fwrite 1 text -> = 4
    alice fread 1 9 0 -> = text
    alice ftruncate 1 2
    alice fstat 1 size,mode -> = 2,0000
    alice open f O_RDONLY -> EACCES
create where the directory may not be written
    root mkdir d 0755
    alice create d/f 0644 -> EACCES
    alice mkdir d/e 0755 -> EACCES
    alice symlink x d/l -> EACCES
    alice mknod d/p p 0644 -> EACCES
    root create d/f 0644
    alice create d/f 0644 -> EEXIST
    alice mkdir d/f 0755 -> EEXIST
create where the directory may not be searched
    root mkdir d 0766
    root create d/f 0666
    alice create d/g 0644 -> EACCES
    alice open d/f O_RDONLY -> EACCES
    alice stat d/f type -> EACCES
    alice mkdir d/g 0755 -> EACCES
    alice unlink d/f -> EACCES
    alice ls d -> = f
a directory that may be searched and not read
    root mkdir d 0711
    root create d/f 0644
    alice open d/f O_RDONLY
    alice ls d -> EACCES
    alice open d O_RDONLY -> EACCES
open of a directory
    alice mkdir d 0755
    alice open d O_RDONLY
    alice open d O_RDONLY|O_DIRECTORY
    alice open d O_WRONLY -> EISDIR
    alice open d O_RDWR -> EISDIR
    alice open d O_RDONLY|O_CREAT 0644 -> EISDIR
    alice open d O_WRONLY|O_TRUNC -> EISDIR
O_DIRECTORY of what is none
    alice create f 0644
    alice open f O_RDONLY|O_DIRECTORY -> ENOTDIR
    alice symlink f l
    alice open l O_RDONLY|O_DIRECTORY -> ENOTDIR
a component that is no directory
    alice create f 0644
    alice open f/x O_RDONLY -> ENOTDIR
    alice open f/x O_RDONLY|O_CREAT 0644 -> ENOTDIR
    alice mkdir f/x 0755 -> ENOTDIR
    alice unlink f/x -> ENOTDIR
    alice rmdir f/x -> ENOTDIR
    alice rename f/x y -> ENOTDIR
    alice stat f/x type -> ENOTDIR
    alice symlink x f/x -> ENOTDIR
    alice link f f/x -> ENOTDIR
    alice chmod f/x 0644 -> ENOTDIR
    alice truncate f/x 0 -> ENOTDIR
    alice access f/x f -> ENOTDIR
    alice readlink f/x -> ENOTDIR
a component that is not there
    alice open d/x O_RDONLY|O_CREAT 0644 -> ENOENT
    alice mkdir d/x 0755 -> ENOENT
    alice mknod d/x p 0644 -> ENOENT
    alice symlink x d/x -> ENOENT
    alice rename d/x y -> ENOENT
    alice rmdir d/x -> ENOENT
names of 255 and of 256 bytes
    alice create {255} 0644
    alice stat {255} type -> = f
    alice unlink {255}
    alice mkdir {255} 0755
    alice rename {255} d
    alice rename d {255}
    alice rmdir {255}
    alice create {256} 0644 -> ENAMETOOLONG
    alice open {256} O_RDONLY -> ENAMETOOLONG
    alice mkdir {256} 0755 -> ENAMETOOLONG
    alice symlink x {256} -> ENAMETOOLONG
    alice mknod {256} p 0644 -> ENAMETOOLONG
    alice unlink {256} -> ENAMETOOLONG
    alice rmdir {256} -> ENAMETOOLONG
    alice create f 0644
    alice rename f {256} -> ENAMETOOLONG
    alice rename {256} g -> ENAMETOOLONG
    alice link f {256} -> ENAMETOOLONG
    alice stat {256} type -> ENAMETOOLONG
a path of 4096 bytes
    alice open {4096} O_RDONLY -> ENAMETOOLONG
    alice mkdir {4096} 0755 -> ENAMETOOLONG
names with any bytes but NUL and slash
    alice create "a b" 0644
    alice create "new\nline" 0644
    alice create "..." 0644
    alice create "-" 0644
    alice create ünïcödé 0644
    alice ls . -> = -,...,a b,new\nline,ünïcödé
open through a link
    alice create f 0644
    alice symlink f l
    alice open l O_RDWR
    alice open l O_RDONLY|O_NOFOLLOW -> ELOOP
    alice symlink g m
    alice open m O_RDONLY -> ENOENT
    alice open m O_WRONLY|O_CREAT 0644
    alice stat g type -> = f
a loop of links
    alice symlink b a
    alice symlink a b
    alice open a O_RDONLY -> ELOOP
    alice open a/x O_RDONLY -> ELOOP
    alice mkdir a/x 0755 -> ELOOP
    alice mkdir a 0755 -> EEXIST
    alice truncate a 0 -> ELOOP
    alice chmod a 0644 -> ELOOP
    alice stat a type -> = l
    alice unlink a
a link that leads up and down again
    alice mkdir d 0755
    alice create d/f 0644
    alice symlink ../d/f d/l
    alice open d/l O_RDONLY
    alice open d/../d/./l O_RDWR
open of a FIFO for writing that nobody reads
    alice mknod p p 0644
    alice open p O_WRONLY|O_NONBLOCK -> ENXIO
    alice open p O_RDONLY|O_NONBLOCK
    alice open p O_RDWR
open of a socket
    alice mknod s s 0644
    alice open s O_RDONLY -> ENXIO
a slash behind a name
    alice create f 0644
    alice mkdir d 0755
    alice open f/ O_RDONLY -> ENOTDIR
    alice open d/ O_RDONLY
    alice mkdir e/ 0755
    alice open g/ O_WRONLY|O_CREAT 0644 -> EISDIR
    alice unlink f/ -> ENOTDIR
    alice rmdir e/

# -- reading and writing

read and write at any offset
    alice create f 0644
    alice openas 1 f O_RDWR
    alice fwrite 1 hello 0 -> = 5
    alice fwrite 1 there 3 -> = 5
    alice fread 1 99 0 -> = helthere
    alice fread 1 3 6 -> = re
    alice fread 1 9 8 -> = -
    alice fread 1 9 1000000 -> = -
a hole reads as zeroes
    alice openas 1 f O_RDWR|O_CREAT
    alice fwrite 1 x 100000 -> = 1
    alice fstat 1 size -> = 100001
    alice fread 1 1 50000 -> = \0
    alice seek 1 0 DATA -> = 98304
    alice seek 1 0 HOLE -> = 0
    alice seek 1 98304 HOLE -> = 100001
    alice seek 1 100001 DATA -> ENXIO
    alice seek 1 200000 HOLE -> ENXIO
an append goes to the end, whoever made it longer
    alice create f 0666
    alice chmod f 0666
    alice openas 1 f O_WRONLY|O_APPEND
    bob openas 1 f O_WRONLY|O_APPEND
    alice fwrite 1 one -> = 3
    bob fwrite 1 two -> = 3
    alice fwrite 1 three -> = 5
    root read f -> = onetwothree
descriptors of the wrong kind
    alice create f 0644
    alice openas 1 f O_RDONLY
    alice fwrite 1 x 0 -> EBADF
    alice ftruncate 1 0 -> EINVAL|EBADF
    alice openas 2 f O_WRONLY
    alice fread 2 1 0 -> EBADF
    alice mkdir d 0755
    alice openas 3 d O_RDONLY
    alice fread 3 1 0 -> EISDIR
what one writes the other reads at once
    alice create f 0644
    bob openas 1 f O_RDONLY
    alice write f first
    bob fread 1 99 0 -> = first
    alice write f SECOND
    bob fread 1 99 0 -> = SECOND
    alice truncate f 3
    bob fread 1 99 0 -> = SEC
    bob fstat 1 size -> = 3
a write stamps the file, a read does not
    alice create f 0644
    alice write f text
    alice mark f
    alice read f -> = text
    alice changed f -> = -
    alice write f more
    alice changed f -> = cm
a write of somebody else takes set-user-ID and set-group-ID away
    alice create f 0644
    alice chmod f 06777
    bob write f x
    alice stat f mode -> = 0777
    alice chmod f 06777
    root write f x
    alice stat f mode -> = 6777
    alice chmod f 02767
    bob write f x
    alice stat f mode -> = 2767|= 0767
fsync and fdatasync
    alice openas 1 f O_RDWR|O_CREAT
    alice fwrite 1 x
    alice fsync 1
    alice fdatasync 1
    alice mkdir d 0755
    alice openas 2 d O_RDONLY
    alice fsync 2
fallocate
    alice openas 1 f O_RDWR|O_CREAT
    alice fallocate 1 ALLOCATE 0 10000
    alice fstat 1 size -> = 10000
    alice fallocate 1 KEEP_SIZE 10000 10000
    alice fstat 1 size -> = 10000
    alice fwrite 1 xxxxxxxx 0
    alice fallocate 1 PUNCH_HOLE 2 4
    alice fread 1 8 0 -> = xx\0\0\0\0xx
    alice fallocate 1 ZERO_RANGE 0 1
    alice fread 1 2 0 -> = \0x
    alice fallocate 1 ALLOCATE 0 0 -> EINVAL
    alice fallocate 1 ALLOCATE -1 5 -> EINVAL
    alice openas 2 f O_RDONLY
    alice fallocate 2 ALLOCATE 0 5 -> EBADF

# -- truncate

truncate makes shorter and longer
    alice create f 0644
    alice write f "some text"
    alice truncate f 4
    alice read f -> = some
    alice truncate f 6
    alice read f -> = some\0\0
    alice stat f size -> = 6
truncate stamps the file
    alice create f 0644
    alice write f text
    alice mark f
    alice truncate f 2
    alice changed f -> = cm
    alice mark f
    alice truncate f 2
    alice changed f -> = cm
truncate that is refused
    alice create f 0644
    bob truncate f 0 -> EACCES
    alice mkdir d 0755
    alice truncate d 0 -> EISDIR
    alice truncate x 0 -> ENOENT
    alice truncate f -1 -> EINVAL
    alice mknod p p 0644
    alice truncate p 0 -> EINVAL
    root truncate f 5
    alice stat f size -> = 5
truncate by somebody else takes set-user-ID away
    alice create f 0644
    alice chmod f 04766
    bob truncate f 0
    alice stat f mode -> = 0766
truncation by somebody else stamps the file, also an empty one
    alice create f 0644
    alice chmod f 0666
    alice write f text
    alice mark f
    bob open f O_WRONLY|O_TRUNC
    alice stat f size -> = 0
    alice changed f -> = cm
    alice mark f
    bob open f O_WRONLY|O_TRUNC
    alice changed f -> = cm
    bob openas 1 f O_RDWR
    bob ftruncate 1 5
    alice stat f size -> = 5
ftruncate goes on after the mode was changed
    alice openas 1 f O_RDWR|O_CREAT 0644
    alice chmod f 0000
    alice ftruncate 1 10
    alice fstat 1 size -> = 10

# -- mkdir, rmdir

mkdir makes an empty directory
    alice mkdir d 0750
    alice stat d type,mode,nlink,uid,gid -> = d,0750,2,10001,10001
    alice ls d -> = -
links of a directory count its directories
    alice mkdir d 0755
    alice mkdir d/a 0755
    alice mkdir d/b 0755
    alice create d/f 0644
    alice stat d nlink -> = 4
    alice rmdir d/a
    alice stat d nlink -> = 3
mkdir and rmdir stamp the directory above
    alice mkdir d 0755
    alice mark d
    alice mkdir d/e 0755
    alice changed d -> = cm
    alice mark d
    alice rmdir d/e
    alice changed d -> = cm
mkdir of a name that is there
    alice create f 0644
    alice mkdir d 0755
    alice symlink nowhere l
    alice mkdir f 0755 -> EEXIST
    alice mkdir d 0755 -> EEXIST
    alice mkdir l 0755 -> EEXIST
    alice mkdir . 0755 -> EEXIST
    alice mkdir .. 0755 -> EEXIST
    alice mkdir d/. 0755 -> ENOENT|EEXIST
mkdir with the sticky bit
    alice mkdir d 01777
    alice stat d mode -> = 1755
    alice umask 0
    alice mkdir e 01777
    alice stat e mode -> = 1777
set-group-ID of a directory is inherited
    root mkdir d 0777
    root chown d 0 10003
    root chmod d 02777
    alice create d/f 0644
    alice mkdir d/e 0755
    bob create d/g 0644
    alice stat d/f gid,mode -> = 10003,0644
    alice stat d/e gid,mode -> = 10003,2755
    alice stat d/g gid -> = 10003
    alice mkdir d/e/i 0700
    alice stat d/e/i gid,mode -> = 10003,2700
rmdir that is refused
    alice mkdir d 0755
    alice create d/f 0644
    alice rmdir d -> ENOTEMPTY|EEXIST
    alice rmdir d/f -> ENOTDIR
    alice rmdir x -> ENOENT
    alice rmdir . -> EINVAL
    alice rmdir d/.. -> ENOTEMPTY|EEXIST
    alice symlink d l
    alice rmdir l -> ENOTDIR
    alice unlink d -> EISDIR
    alice unlink . -> EISDIR|EPERM
    root mkdir e 0755
    root mkdir e/x 0777
    alice rmdir e/x -> EACCES
a directory that was removed while it is open
    alice mkdir d 0755
    alice openas 1 d O_RDONLY
    alice rmdir d
    alice fstat 1 type,nlink -> = d,0
    alice stat d type -> ENOENT
a working directory that was removed
    alice mkdir d 0755
    alice cd d
    bob rmdir d
    alice create f 0644 -> ENOENT
    alice mkdir e 0755 -> ENOENT
    alice stat . nlink -> = 0

# -- mknod

mknod makes files, FIFOs and sockets for anybody
    alice mknod f f 0640
    alice mknod p p 0640
    alice mknod s s 0640
    alice stat f type,mode -> = f,0640
    alice stat p type,mode,nlink -> = p,0640,1
    alice stat s type,mode -> = s,0640
    alice mknod p p 0644 -> EEXIST
    alice mknod f f 0644 -> EEXIST
mknod makes devices for root
    root mknod b b 0600 8.1
    root mknod c c 0600 5.300
    root stat b type,rdev -> = b,8.1
    root stat c type,rdev -> = c,5.300
    alice mknod d b 0600 8.1 -> EPERM
    alice mknod d c 0600 1.3 -> EPERM
names of special files are removed like others
    alice mknod p p 0640
    alice rename p q
    alice link q r
    alice stat r nlink -> = 2
    alice unlink q
    alice unlink r
    alice ls . -> = -

# -- symbolic links

symlink and readlink
    alice symlink some/where l
    alice readlink l -> = some/where
    alice stat l type,size,nlink,uid -> = l,10,1,10001
    alice symlink /abs/path m
    alice readlink m -> = /abs/path
    alice symlink x l -> EEXIST
    bob readlink l -> = some/where
links of all lengths
    alice symlink {255} a
    alice readlink a -> = """
    + "n" * 255
    + r"""
    alice symlink {4095} b
    alice stat b size -> = 4095
    alice readlink b -> = """
    + "t" * 4095
    + r"""
    alice symlink "" c -> ENOENT
readlink of what is none
    alice create f 0644
    alice readlink f -> EINVAL
    alice mkdir d 0755
    alice readlink d -> EINVAL
    alice readlink x -> ENOENT
chown and times of a link are its own
    alice create f 0644
    alice symlink f l
    root chown l 10002 10002
    alice stat l uid,gid -> = 10002,10002
    alice stat f uid -> = 10001
    root utime l 1000000000 2000000001
    alice stat l mtime -> = 2000000001

# -- hard links

link gives a file one more name
    alice create f 0644
    alice write f text
    alice link f g
    alice same f g -> = yes
    alice stat g nlink -> = 2
    alice write g TEXT
    alice read f -> = TEXT
    alice unlink f
    alice stat g nlink -> = 1
    alice read g -> = TEXT
link stamps file and directory
    alice create f 0644
    alice mkdir d 0755
    alice mark f
    alice mark d
    alice link f d/g
    alice changed f -> = c
    alice changed d -> = cm
link that is refused
    alice create f 0644
    alice mkdir d 0755
    alice link f d -> EEXIST
    alice link f f -> EEXIST
    alice link x y -> ENOENT
    alice link d e -> EPERM
    alice link f d/e/x -> ENOENT
    root mkdir r 0755
    alice link f r/f -> EACCES
link of a symbolic link is of itself
    alice symlink nowhere l
    alice link l m
    alice stat m type,nlink -> = l,2
    alice readlink m -> = nowhere

# -- unlink

unlink of an open file leaves it until it is closed
    alice openas 1 f O_RDWR|O_CREAT
    alice fwrite 1 text
    alice unlink f
    alice stat f type -> ENOENT
    alice fstat 1 nlink,size -> = 0,4
    alice fread 1 9 0 -> = text
    alice fwrite 1 more 4 -> = 4
    alice ftruncate 1 6
    alice fstat 1 size -> = 6
    alice fchmod 1 0600
    alice fstat 1 mode -> = 0600
    alice fsync 1
    alice create f 0644
    alice stat f size -> = 0
    alice fread 1 99 0 -> = textmo
unlink stamps directory and file
    alice mkdir d 0755
    alice create d/f 0644
    alice link d/f g
    alice mark d
    alice mark g
    alice unlink d/f
    alice changed d -> = cm
    alice changed g -> = c
unlink asks for the directory, not for the file
    alice mkdir d 0777
    alice chmod d 0777
    root create d/f 0600
    bob unlink d/f
    root create d/g 0666
    alice chmod d 0755
    bob unlink d/g -> EACCES
    bob unlink d/x -> ENOENT
a sticky directory: who removes and renames
    root mkdir d 0777
    root chmod d 01777
    alice create d/f 0666
    bob unlink d/f -> EPERM
    bob rename d/f d/g -> EPERM
    bob create d/b 0644
    bob rename d/b d/f -> EPERM
    alice rename d/f d/g
    bob mkdir d/e 0777
    alice rmdir d/e -> EPERM
    root unlink d/g
    alice create d/h 0644
    root chown d 10002 10002
    bob unlink d/h

# -- rename

rename of a file over another
    alice create f 0644
    alice write f one
    alice create g 0644
    alice write g two
    alice openas 1 g O_RDONLY
    alice rename f g
    alice read g -> = one
    alice stat f type -> ENOENT
    alice fread 1 9 0 -> = two
    alice fstat 1 nlink -> = 0
rename keeps the file, whoever has it open
    alice openas 1 f O_RDWR|O_CREAT
    alice mkdir d 0755
    alice rename f d/g
    alice fwrite 1 text
    alice read d/g -> = text
    alice fstat 1 nlink -> = 1
rename to another name of the same file does nothing
    alice create f 0644
    alice link f g
    alice rename f g
    alice stat f nlink -> = 2
    alice ls . -> = f,g
    alice rename f f
rename between kinds
    alice create f 0644
    alice mkdir d 0755
    alice mkdir e 0755
    alice create e/x 0644
    alice rename f d -> EISDIR
    alice rename d f -> ENOTDIR
    alice rename d e -> ENOTEMPTY|EEXIST
    alice rename e d
    alice ls d -> = x
    alice symlink nowhere l
    alice rename l f
    alice stat f type -> = l
    alice rename f/ g -> ENOTDIR|ENOENT
rename of a directory into itself
    alice mkdir d 0755
    alice mkdir d/e 0755
    alice rename d d/x -> EINVAL
    alice rename d d/e/x -> EINVAL
    alice rename d/e d -> ENOTEMPTY|EEXIST
    alice rename . x -> EBUSY|EINVAL
    alice rename d/. x -> EBUSY|EINVAL
    alice rename d .. -> EBUSY|EINVAL|ENOTEMPTY|EEXIST
rename of a directory moves its parent's link
    alice mkdir a 0755
    alice mkdir b 0755
    alice mkdir a/d 0755
    alice create a/d/f 0644
    alice rename a/d b/d
    alice stat a nlink -> = 2
    alice stat b nlink -> = 3
    alice same b/d/.. b -> = yes
    alice stat b/d/f type -> = f
rename stamps both directories
    alice mkdir a 0755
    alice mkdir b 0755
    alice create a/f 0644
    alice mark a
    alice mark b
    alice mark a/f
    alice rename a/f b/f
    alice changed a -> = cm
    alice changed b -> = cm
    alice changed b/f a/f -> = c
rename that is refused
    alice create f 0644
    alice rename x y -> ENOENT
    alice rename f d/g -> ENOENT
    root mkdir r 0755
    root create r/f 0644
    alice rename f r/g -> EACCES
    alice rename r/f g -> EACCES
    alice rename r/x g -> ENOENT
rename of a directory that one may not write
    root mkdir d 0777
    root chmod d 0777
    alice mkdir d/a 0755
    alice mkdir d/b 0777
    alice chmod d/b 0777
    bob rename d/a d/c
    bob rename d/c d/b/c -> EACCES
renameat2 with NOREPLACE
    alice create f 0644
    alice create g 0644
    alice renameat2 f g NOREPLACE -> EEXIST
    alice renameat2 f h NOREPLACE
    alice ls . -> = g,h
renameat2 with EXCHANGE
    alice create f 0644
    alice mkdir d 0755
    alice create d/x 0644
    alice renameat2 f d EXCHANGE
    alice stat f type -> = d
    alice stat d type -> = f
    alice renameat2 f n EXCHANGE -> ENOENT
    alice renameat2 f f/x EXCHANGE -> EINVAL
    alice renameat2 f d NOREPLACE|EXCHANGE -> EINVAL
a name is found at once under its new directory
    alice mkdir a 0755
    bob stat a/f type -> ENOENT
    alice create a/f 0644
    bob stat a/f type -> = f
    alice rename a b
    bob stat a/f type -> ENOENT
    bob stat b/f type -> = f

# -- chmod

chmod changes mode and change time
    alice create f 0644
    alice mark f
    alice chmod f 0600
    alice stat f mode -> = 0600
    alice changed f -> = c
    alice chmod f 07777
    alice stat f mode -> = 7777
    alice mkdir d 0755
    alice chmod d 01000
    alice stat d mode -> = 1000
chmod is the owner's
    alice create f 0666
    bob chmod f 0666 -> EPERM
    root chmod f 0604
    alice stat f mode,uid -> = 0604,10001
    alice chmod x 0644 -> ENOENT
chmod by one who is not in the group takes set-group-ID away
    root create f 0644
    root chown f 10001 10002
    alice chmod f 02755
    alice stat f mode -> = 0755
    root chown f 10001 10003
    alice chmod f 02755
    alice stat f mode -> = 2755
    root chown f 10001 10002
    root chmod f 02755
    alice stat f mode -> = 2755
chmod through a link
    alice create f 0644
    alice symlink f l
    alice chmod l 0600
    alice stat f mode -> = 0600
fchmod of a file that lost its name
    alice openas 1 f O_RDWR|O_CREAT 0644
    alice unlink f
    alice fchmod 1 0640
    alice fstat 1 mode -> = 0640

# -- chown

chown is root's, and groups are the owner's
    alice create f 0644
    alice chown f 10002 -1 -> EPERM
    alice chown f -1 10003
    alice stat f uid,gid -> = 10001,10003
    alice chown f -1 10002 -> EPERM
    bob chown f -1 10002 -> EPERM
    alice chown f 10001 10001
    alice chown f -1 -1
    root chown f 10002 -1
    alice stat f uid,gid -> = 10002,10001
    alice chown f -1 10001 -> EPERM
chown stamps
    alice create f 0644
    alice mark f
    alice chown f -1 10003
    alice changed f -> = c
chown takes set-user-ID and set-group-ID away
    alice create f 0755
    alice chmod f 06755
    alice chown f -1 10003
    alice stat f mode -> = 0755
    root chmod f 06755
    root chown f 10002 10002
    alice stat f mode -> = 0755
    root chmod f 02745
    root chown f 10001 10001
    alice stat f mode -> = 2745
    alice mkdir d 0755
    alice chmod d 02755
    alice chown d -1 10003
    alice stat d mode -> = 2755

# -- times

utime sets both times, to the nanosecond
    alice create f 0644
    alice utime f 1000000001 2000000002
    alice stat f atime,mtime -> = 1000000001,2000000002
    alice utime f omit 1500000000000000000
    alice stat f atime,mtime -> = 1000000001,1500000000000000000
    alice utime f 5 omit
    alice stat f atime,mtime -> = 5,1500000000000000000
    alice utime f -1000000000 -1000000000
    alice stat f mtime -> = -1000000000
times to now
    alice create f 0666
    alice chmod f 0666
    alice utime f 1000000000 1000000000
    alice mark f
    bob utime f now now
    alice changed f -> = cm
    bob utime f 1 1 -> EPERM
    bob utime f now omit -> EPERM
    alice chmod f 0644
    bob utime f now now -> EACCES
    bob utime f omit omit
    root utime f 7000000000 8000000000
    alice stat f atime,mtime -> = 7000000000,8000000000
times of directories
    alice mkdir d 0755
    alice utime d 1000000000 2000000000
    alice stat d mtime -> = 2000000000
    alice create d/f 0644
    alice mark d
    alice stat d type -> = d

# -- access

access asks for the caller
    alice create f 0640
    alice access f rw
    alice access f x -> EACCES
    bob access f r -> EACCES
    bob access f f
    root access f rw
    root access f x -> EACCES
    alice chmod f 0750
    root access f x
    alice access x f -> ENOENT
    alice mkdir d 0000
    root access d rwx
    alice access d x -> EACCES

# -- extended attributes

attributes of files and directories
    alice create f 0644
    alice setx f user.a value
    alice getx f user.a -> = value
    alice getx f user.b -> ENODATA
    alice setx f user.a other create -> EEXIST
    alice setx f user.b x replace -> ENODATA
    alice setx f user.a other replace
    alice getx f user.a -> = other
    alice setx f user.c ""
    alice lsx f -> = user.a,user.c
    alice getx f user.c -> = -
    alice rmx f user.a
    alice rmx f user.a -> ENODATA
    alice lsx f -> = user.c
    alice mkdir d 0755
    alice setx d user.a dir
    bob getx d user.a -> = dir
attributes that are refused
    alice create f 0600
    bob getx f user.a -> EACCES
    bob setx f user.a x -> EACCES
    alice setx f nonsense x -> ENOTSUP
    alice setx f user. x -> EINVAL
    alice setx f user.{255} x -> ERANGE
    alice setx f user.a HUGE -> E2BIG
    alice symlink f l
    alice setx l user.a x -> EPERM
    alice setx f trusted.a x -> EPERM
    alice getx f trusted.a -> ENODATA
    root setx f trusted.a x
    root getx f trusted.a -> = x
setting an attribute stamps the file
    alice create f 0644
    alice mark f
    alice setx f user.a x
    alice changed f -> = c
attributes go with the file
    alice create f 0644
    alice setx f user.a x
    alice rename f g
    alice getx g user.a -> = x
    alice link g h
    alice getx h user.a -> = x

# -- directories, file system

a directory shows what is in it
    alice mkdir d 0755
    alice ls d -> = -
    alice create d/b 0644
    alice mkdir d/a 0755
    alice symlink x d/c
    alice ls d -> = a,b,c
    alice rename d/b d/z
    alice unlink d/c
    alice ls d -> = a,z
dot and dot-dot
    alice mkdir d 0755
    alice mkdir d/e 0755
    alice same d/. d -> = yes
    alice same d/e/.. d -> = yes
    alice same d/e/../.. . -> = yes
statvfs
    alice statvfs . -> = 255

# -- locks

locks of two processes
    alice create f 0644
    alice chmod f 0666
    alice openas 1 f O_RDWR
    bob openas 1 f O_RDWR
    alice lock 1 write 0 10
    bob lock 1 read 5 1 -> EAGAIN|EACCES
    bob lock 1 write 10 10
    alice lock 1 read 10 1 -> EAGAIN|EACCES
    alice lock 1 read 0 10
    bob lock 1 read 5 1
    alice lock 1 write 5 1 -> EAGAIN|EACCES
    alice lock 1 unlock 0 0
    bob lock 1 write 0 0
    bob close 1
    alice lock 1 write 0 0
a lock of the wrong kind of descriptor
    alice create f 0644
    alice openas 1 f O_RDONLY
    alice lock 1 write 0 1 -> EBADF
    alice lock 1 read 0 1
    alice openas 2 f O_WRONLY
    alice lock 2 read 0 1 -> EBADF
a lock ends with any close by its process
    alice create f 0644
    alice chmod f 0666
    alice openas 1 f O_RDWR
    alice openas 2 f O_RDWR
    alice lock 1 write 0 0
    bob openas 1 f O_RDWR
    bob lock 1 write 0 0 -> EAGAIN|EACCES
    alice close 2
    bob lock 1 write 0 0
"""
)
