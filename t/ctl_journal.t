#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# referralctl journal: live, copied and damaged journals.

use strict;
use warnings;

use Test::More;
use File::Copy qw(copy);
use IPC::Open2 qw(open2);
use JSON::PP;
use POSIX ();
use Referral::Test;

my $t = Referral::Test->new();
my $build = $t->build();
my $journal = $t->dir() . '/clicks';
my $json = JSON::PP->new()->utf8();

delete @ENV{qw(REFERRAL_JOURNAL REFERRAL_REDIS REFERRAL_DB)};
mkdir($journal) or die;

sub writer {
    my ($dir, @args) = @_;
    my ($stream) = $t->journal_write($dir, @args)
                   =~ /^stream ([0-9a-f]{32})$/m or die;
    return $stream;
}

sub ctl {
    my ($verb, @args) = @_;
    return $t->referralctl('journal', $verb, '--journal', $journal, @args);
}

sub documents {
    return map { $json->decode($_) } grep { /^\{/ } split(/\n/, $_[0]);
}

# stdout and stderr apart

sub lines {
    my (@args) = @_;
    open(my $fh, '-|', "$build/referralctl", 'journal', @args) or die;
    my @lines = <$fh>;
    close($fh);
    return @lines;
}

sub slurp {
    my ($path) = @_;
    open(my $fh, '<:raw', $path) or die "$path: $!\n";
    local $/;
    return <$fh>;
}

sub poke {
    my ($path, $offset, $bytes) = @_;
    open(my $fh, '+<:raw', $path) or die "$path: $!\n";
    seek($fh, $offset, 0);
    print $fh $bytes;
    close($fh);
}

sub flip {
    my ($path, $offset) = @_;
    poke($path, $offset, substr(slurp($path), $offset, 1) ^ "\x10");
}

# a journal to damage: three segments and a bit

my $n = 0;

sub fresh {
    my $dir = $t->dir() . '/damaged' . ++$n;
    mkdir($dir) or die;
    my $stream = writer($dir, '--count', 900, '--at', 1800000000000);
    my @segments = sort glob("$dir/$stream/[0-9]*.seg");
    die 'too few segments' unless @segments >= 3;
    return ($dir, $stream, @segments);
}

sub verify {
    my ($dir) = @_;
    my $r = $t->referralctl('journal', 'verify', '--json', '--journal', $dir);
    my $doc = $json->decode($r->{output});
    return ($r->{status}, $doc->{problems}, $doc->{records});
}

#
# nothing there
#

my $r = ctl('list');
is($r->{status}, 0, 'list of an empty journal');
like($r->{output}, qr/^no streams/, 'says so');
is_deeply($json->decode(ctl('list', '--json')->{output}), [], 'as JSON');
is(ctl('export')->{output}, '', 'nothing to export');
is(ctl('tail')->{output}, '', 'nothing to tail');
is(ctl('verify')->{status}, 0, 'nothing to verify');

$r = $t->referralctl('journal', 'list', '--journal', '/nonexistent');
is($r->{status}, 1, 'no such directory');
like($r->{output}, qr/\/nonexistent.*No such file/, 'is named');

$r = $t->referralctl('journal', 'list');
is($r->{status}, 2, 'no --journal');
like($r->{output}, qr/REFERRAL_JOURNAL/, 'says what to give');

#
# live
#

my $pid = open2(my $out, my $in, "$build/t/journal_write", '--journal',
                $journal, '--count', 3, '--ids', '--hold', '--edge',
                'edge-7');
my ($live) = <$out> =~ /^stream (\w+)/;
my %id;

for (1 .. 3) {
    my ($number, $id) = split(' ', <$out>);
    $id{$number} = $id;
}

is(scalar(<$out>), "appended 3\n", 'a live stream');

my ($s) = @{ $json->decode(ctl('list', '--json')->{output}) };
my $bytes = delete $s->{bytes};

is_deeply($s, { stream => $live, edge => 'edge-7', pid => $pid,
                state => 'live', first => 1, last => 3, committed => 0,
                freed => 0, records => 3, lag => 3, problems => 0 },
          'list --json');
cmp_ok($bytes, '>=', 65536, 'with its bytes');

like(ctl('list')->{output},
     qr/^\Q@{[ substr($live, 0, 12) ]}\E +edge-7 +$pid +live +1 +3 +0 +3 +3 /m,
     'list for people');

my @records = documents(ctl('export', '--json')->{output});
is(@records, 3, 'export');
is($records[$_ - 1]{id}, $id{$_}, "id of record $_") for 1 .. 3;
is($records[2]{seq}, 3, 'number');
is($records[2]{stream}, $live, 'stream');
like($records[0]{occurred_at}, qr/^20\d\d-\d\d-\d\dT[\d:]+\.\d{3}Z$/, 'time');

my %want = (type => 'click', verdict => 'valid', via => 'redirect',
            cache => 'hit', code => 'SUMMER25', country => 'DE',
            city => 'Berlin', ip => '203.0.113.0/24', host => 'example.com',
            path => '/r/SUMMER25', destination => 'https://example.com/summer',
            referer_host => 'news.example', language => 'de-DE',
            region => undef, asn => undef, visitor => undef, code_id => undef,
            campaign => undef);

is($records[0]{$_}, $want{$_}, "field $_") for sort keys %want;
is_deeply($records[0]{signals}, [], 'no signals');
is_deeply($records[0]{args}, {}, 'no arguments');

is_deeply([ map { $_->{seq} }
            documents(ctl('export', '--from', 2)->{output}) ], [ 2, 3 ],
          'export --from');
is(ctl('verify')->{status}, 0, 'a live stream verifies');

# tail -f: the last ones, new ones, and those of new streams

# a line that does not come must not keep the test waiting for ever

alarm(60);

my $tail = open(my $tail_out, '-|') // die;

if ($tail == 0) {
    open(STDERR, '>&', \*STDOUT);
    exec("$build/referralctl", 'journal', 'tail', '-f', '-n', 1, '--journal',
         $journal) or POSIX::_exit(127);
}

like(scalar(<$tail_out>), qr{^20\d\d-\d\d-\d\d\ [\d:]{8}\ \ SUMMER25\ +valid\ +
     redirect\ +DE\ Berlin\ +203\.0\.113\.0/24\ +/r/SUMMER25
     \ \xe2\x86\x92\ https://example\.com/summer$}x, 'tail: a readable line');

print $in "1\n";
$in->flush();
<$out> for 1 .. 2;
like(scalar(<$tail_out>), qr/ SUMMER25 /, 'tail -f: a new record');

my $second = writer($journal, '--code', 'OTHER', '--count', 2);
like(scalar(<$tail_out>), qr/ OTHER /, 'tail -f: a new stream');
like(scalar(<$tail_out>), qr/ OTHER /, 'all of it');

kill('INT', $tail);
is(join('', <$tail_out>), '', 'SIGINT ends it without a word');
close($tail_out);
is($?, 0, 'and the exit code is 0');

# a reader that goes away ends it too

$tail = open($tail_out, '-|', "$build/referralctl", 'journal', 'tail', '-f',
             '--json', '--journal', $journal) // die;
is($json->decode(scalar(<$tail_out>))->{code}, 'SUMMER25', 'tail --json');
{
    # closing a pipe waits for its process

    local $SIG{ALRM} = sub { kill('KILL', $tail) };
    alarm(10);
    ok(close($tail_out), 'tail ends with its reader');
    alarm(0);
}

alarm(0);
close($in);
waitpid($pid, 0);

is_deeply([ map { $_->{state} } @{ $json->decode(
            ctl('list', '--json')->{output}) } ], [ 'final', 'final' ],
          'closed streams are final');

is(() = lines('tail', '-n', 3, '--journal', $journal), 3, 'tail -n');
my @times = map { substr($_, 0, 19) } lines('tail', '-n', 100, '--journal',
                                            $journal);
is(@times, 6, 'tail of everything');
is_deeply(\@times, [ sort @times ], 'is in the order of time');

is_deeply([ map { $_->{code} } documents(ctl('export', substr($second, 0, 8))
                                         ->{output}) ],
          [ 'OTHER', 'OTHER' ], 'export of one stream');
is(ctl('export', 'ffffff')->{status}, 1, 'no such stream');

{
    open(my $fh, '-|', "$build/referralctl journal export --journal $journal"
         . '; echo $?') or die;
    my @all = <$fh>;
    is($all[-1], "0\n", 'export exits with 0');

    open($fh, '-|', "bash -c '$build/referralctl journal export --journal"
         . " $journal | head -1 >/dev/null; echo \${PIPESTATUS[0]}' 2>&1")
        or die;
    is(join('', <$fh>), "0\n", 'a closed pipe is no fault');
}

#
# what clients sent never reaches the terminal as it is
#

my $evil = $t->dir() . '/evil';
mkdir($evil) or die;
writer($evil, '--path', '/r/\x1b]0;owned\x07\x9b31m\xc2\x9b', '--city',
       'M\xc3\xbcnchen', '--ua', 'a\x00b\xff\xe2\x80\xaec', '--destination',
       'https://example.com/\x0d\x0aX', '--arg', '\x7f"\\', '--verdict',
       'unknown', '--via', 'parameter', '--type', 'share');

my ($line) = lines('tail', '--journal', $evil);
unlike($line, qr/[\x00-\x09\x0b-\x1f\x7f]/, 'no control character');
unlike($line, qr/\xc2[\x80-\x9f]/, 'nor those of UTF-8');
like($line, qr/\\x1b\]0;owned\\x07/, 'they are written out');
like($line, qr/DE M\xc3\xbcnchen/, 'other text stays');
like($line, qr/unknown +parameter .* share$/, 'verdict, via, type');

($line) = lines('export', '--journal', $evil);
unlike($line, qr/[\x00-\x09\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80\xae/,
       'nor in JSON');

my $record = $json->decode($line);
is($record->{user_agent}, "a\x{fffd}b\x{fffd}\x{202e}c", 'cleaned as for'
   . ' Postgres');
is($record->{args}{utm_source}, "\x7f\"\\", 'an argument');
is($record->{city}, "M\x{fc}nchen", 'text');

#
# copies
#

my ($dir, $stream, @segments) = fresh();
my $copy = $t->dir() . '/copy';
mkdir($copy) or die;
mkdir("$copy/$stream") or die;
copy($_, "$copy/$stream/") or die for @segments;

my ($status, $problems, $count) = verify($copy);
is($status, 0, 'a copy without its lock verifies');
is($count, 900, 'all records');
is($json->decode($t->referralctl('journal', 'list', '--json', '--journal',
                                 $copy)->{output})->[0]{state}, 'final',
   'it is final');

chmod(0555, "$copy/$stream", $copy);
chmod(0444, glob("$copy/$stream/*"));

SKIP: {
    skip('only root can become another user', 1) if $> != 0;

    my $text = qx(setpriv --reuid=65534 --regid=65534 --clear-groups \\
                  $build/referralctl journal verify --journal $copy 2>&1);
    skip('the tree can not be read by others', 1)
        if $? >> 8 == 127 || $? >> 8 == 126;
    is($text, "1 stream, 900 records, 0 problems\n", 'by anyone who may read');
}

$r = $t->referralctl('journal', 'inspect', substr($stream, 0, 6), '--journal',
                     $copy);
is($r->{status}, 0, 'inspect');
like($r->{output}, qr/^stream +$stream$/m, 'stream');
like($r->{output}, qr/^records +900$/m, 'records');
like($r->{output}, qr/^0{19}1\.seg +1 +\d+ /m, 'segments');
like($r->{output}, qr/^oldest +2027-01-15 08:00:00  SUMMER25/m, 'first record');

my $doc = $json->decode($t->referralctl('journal', 'inspect', $stream,
                                        '--json', '--journal', $copy)
                        ->{output});
is(@{ $doc->{segments} }, @segments, 'inspect --json: segments');
is($doc->{last_record}{seq}, 900, 'last record');

$doc = $json->decode($t->referralctl('journal', 'inspect', '--json',
                                     $segments[1])->{output});
is($doc->{stream}, $stream, 'inspect of a file');
is($doc->{segments}[0]{records},
   $doc->{segments}[0]{last} - $doc->{segments}[0]{first} + 1, 'its records');

my $middle = $doc->{segments}[0];

$doc = $json->decode($t->referralctl('journal', 'inspect', '--json',
                                     "$copy/$stream")->{output});
is($doc->{stream}, $stream, 'inspect of a directory, without --journal');

#
# damage, each in a journal of its own
#

# a bit in a record

flip($segments[1], 10000);
my $before = slurp($segments[1]);
($status, $problems, $count) = verify($dir);
is($status, 1, 'a flipped bit');
is(@$problems, 1, 'is one problem');
is($problems->[0]{file}, $segments[1] =~ s{.*/}{}r, 'in that file');
ok($problems->[0]{offset} <= 10000 && $problems->[0]{offset} > 9000,
   'at that place');
is($problems->[0]{first}, $problems->[0]{last}, 'one record');
like($problems->[0]{problem}, qr/checksum/, 'checksum');
is($count, 899, 'the others are there');
is(slurp($segments[1]), $before, 'nothing was changed');

$r = $t->referralctl('journal', 'verify', '--journal', $dir);
is($r->{status}, 1, 'for people');
like($r->{output}, qr/^$stream\/\d+\.seg at \d+: record \d+: .*checksum/m,
     'a line a problem');
like($r->{output}, qr/^1 stream, 899 records, 1 problem$/m, 'and a sum');

$r = $t->referralctl('journal', 'export', '--journal', $dir);
is($r->{status}, 1, 'export says it too');
is(documents($r->{output}), 899, 'and gives the others');
is($json->decode($t->referralctl('journal', 'list', '--json', '--journal',
                                 $dir)->{output})->[0]{problems}, 1,
   'and list');

# the last record of a final stream

($dir, $stream, @segments) = fresh();
flip($segments[-1], (-s $segments[-1]) - 20);
($status, $problems, $count) = verify($dir);
is($status, 1, 'a flipped bit in the last record');
like($problems->[0]{problem}, qr/ends the stream/, 'is told');
is($count, 899, 'the others are there');

# a header

($dir, $stream, @segments) = fresh();
flip($segments[1], 20);
($status, $problems, $count) = verify($dir);
is($status, 1, 'a damaged header');
is($problems->[0]{first}, $middle->{first}, 'from its first record');
is($problems->[0]{last}, $middle->{last}, 'to its last');
like($problems->[0]{problem}, qr/header/, 'is named');
is($count, 900 - $middle->{records}, 'the other segments are read');

$doc = $json->decode($t->referralctl('journal', 'inspect', '--json',
                                     $segments[1])->{output});
is($doc->{segments}[0]{state}, 'damaged header', 'inspect of that file');

# the header of the last segment: nothing behind tells how much is lost

($dir, $stream, @segments) = fresh();
flip($segments[-1], 20);
($status, $problems) = verify($dir);
is($status, 1, 'a damaged header of the last segment');
is($problems->[0]{file}, $segments[-1] =~ s{.*/}{}r, 'is told');

# the begin block: records are read nevertheless

($dir, $stream, @segments) = fresh();
flip($segments[1], 258);
($status, $problems, $count) = verify($dir);
is($status, 1, 'a damaged begin block');
is($count, 900, 'loses nothing');

# a zero page, good records behind it

($dir, $stream, @segments) = fresh();
poke($segments[1], 8192, "\0" x 4096);
($status, $problems, $count) = verify($dir);
is($status, 1, 'a zero page');
is($count + $problems->[0]{last} - $problems->[0]{first} + 1, 900,
   'every number is a record or a problem');

# cut

($dir, $stream, @segments) = fresh();
truncate($segments[-1], (-s $segments[-1]) - 30);
($status, $problems, $count) = verify($dir);
is($status, 1, 'a cut record at the end');
is($count, 899, 'the others are there');

($dir, $stream, @segments) = fresh();
truncate($segments[0], 20000);
($status, $problems, $count) = verify($dir);
is($status, 1, 'a cut segment in the middle');
is($problems->[0]{last}, $middle->{first} - 1, 'up to the next one');

($dir, $stream, @segments) = fresh();
truncate($segments[1], 100);
($status, $problems, $count) = verify($dir);
is($status, 1, 'a segment cut within its header');
is($count, 900 - $middle->{records}, 'the others are there');

# gone

($dir, $stream, @segments) = fresh();
unlink($segments[1]);
($status, $problems, $count) = verify($dir);
is($status, 1, 'a lost segment');
is($problems->[0]{first}, $middle->{first}, 'from its first record');
is($problems->[0]{last}, $middle->{last}, 'to its last');

unlink($segments[0]);
($status, $problems) = verify($dir);
is($problems->[0]{first}, 1, 'the first segment lost');
like($problems->[0]{problem}, qr/gone/, 'and nothing says it was freed');

# committed and freed by a worker: no damage

sub crc32c {
    my $crc = 0xffffffff;

    for my $byte (unpack('C*', $_[0])) {
        $crc ^= $byte;
        $crc = $crc & 1 ? ($crc >> 1) ^ 0x82f63b78 : $crc >> 1 for 1 .. 8;
    }

    return $crc ^ 0xffffffff;
}

sub commit {
    my ($dir, $seq, $freed) = @_;
    my $text = "referral position 1\nseq $seq\nlast_id " . '0' x 32
               . "\nsegment -\noffset 0\nfreed $freed\n";
    open(my $fh, '>', "$dir/committed") or die;
    printf $fh "%scrc32c %08x\n", $text, crc32c($text);
    close($fh);
}

($dir, $stream, @segments) = fresh();
my $freed = $middle->{first} - 1;
unlink($segments[0]);
commit("$dir/$stream", 850, $freed);
($status, $problems, $count) = verify($dir);
is($status, 0, 'a freed segment is no damage') or diag(explain($problems));

($s) = @{ $json->decode($t->referralctl('journal', 'list', '--json',
                                        '--journal', $dir)->{output}) };
is($s->{first}, $middle->{first}, 'first');
is($s->{committed}, 850, 'committed');
is($s->{freed}, $freed, 'freed');
is($s->{lag}, 50, 'lag');
is($s->{records}, 900 - $freed, 'records');

unlink($segments[-1]);
($status, $problems) = verify($dir);
is($status, 1, 'records that were committed and are gone');
is($problems->[0]{last}, 850, 'are told');

unlink(@segments);
commit("$dir/$stream", 900, 900);
($status, $problems) = verify($dir);
is($status, 0, 'everything committed and freed');

# a worker died while it freed, or frees while we read

($dir, $stream, @segments) = fresh();
unlink($segments[1]);
commit("$dir/$stream", 850, $middle->{last});
($status, $problems) = verify($dir);
is($status, 0, 'a hole in what was freed') or diag(explain($problems));

commit("$dir/$stream", 850, $middle->{last} - 1);
($status, $problems) = verify($dir);
is($problems->[0]{first}, $middle->{last}, 'and one record beyond it');

# a file of another stream

($dir, $stream, @segments) = fresh();
my ($other, undef, @others) = fresh();
copy($others[1], "$dir/$stream/00000000000000009999.seg") or die;
($status, $problems, $count) = verify($dir);
is($status, 1, 'a segment of another stream');
is($count, 900, 'is not read');

# records that are none, position that is none

my $odd = $t->dir() . '/odd';
mkdir($odd) or die;
my $garbage = writer($odd, '--count', 20, '--garbage', 10);
($status, $problems) = verify($odd);
is($status, 1, 'payloads that can not be read');
is_deeply([ map { $_->{first} } @$problems ], [ 10, 20 ], 'are numbered');
is(documents($t->referralctl('journal', 'export', '--journal', $odd)
             ->{output}), 18, 'export leaves them out');

$t->write_file("odd/$garbage/committed", "nonsense\n");
($status, $problems) = verify($odd);
is($problems->[0]{file}, 'committed', 'a damaged position');

# a writer that was killed: final, and nothing wrong

my $crashed = $t->dir() . '/crashed';
mkdir($crashed) or die;
writer($crashed, '--count', 300, '--crash');
($status, $problems, $count) = verify($crashed);
is($status, 0, 'a writer that died') or diag(explain($problems));
is($count, 300, 'lost nothing');

# set aside

$t->write_file("odd/$garbage/aside", "resumed twice \x1b[31m\n");
($s) = @{ $json->decode($t->referralctl('journal', 'list', '--json',
                                        '--journal', $odd)->{output}) };
is($s->{state}, 'aside', 'a stream set aside');
like($t->referralctl('journal', 'inspect', $garbage, '--journal', $odd)
     ->{output}, qr/^aside +resumed twice \\x1b/m, 'with its reason');

# a thousand random bytes here and there: never a crash, never silence

srand(7);
($dir, $stream, @segments) = fresh();

for (1 .. 40) {
    my $file = $segments[rand @segments];
    poke($file, int(rand(-s $file)), chr(int(rand(256))) x (1 + rand 50));
}

$r = $t->referralctl('journal', 'verify', '--journal', $dir);
is($r->{status}, 1, 'random damage');
like($r->{output}, qr/^1 stream, \d+ records, \d+ problems$/m, 'is counted');

for my $verb ([ 'export' ], [ 'list' ], [ 'tail' ], [ 'inspect', $stream ]) {
    my $status = $t->referralctl('journal', @$verb, '--journal', $dir)
                 ->{status};
    ok($status == 0 || $status == 1, "$verb->[0] of it");
}

$t->done();
