#!/usr/bin/perl

# Copyright (C) The nginx referral module authors

# The journal: what nginx accepts is not lost, and what it cannot accept
# costs no visitor a page.

use strict;
use warnings;

use Test::More;

use Referral::Test;

my $t = Referral::Test->new();
my $journal = $t->dir() . '/journal';

$t->redis()->code('CLICK', url => 'https://example.com/?id={click_id}');

my $server = q{
    referral on;
    location /r/ { referral_redirect; }
    location / { return 200 "$referral_click_id"; }
};

my %conf = (server => $server, status => 1, workers => 2);

$t->nginx(%conf);


sub click {
    my $r = $t->get('/r/CLICK');

    return $r->status() == 302 ? ($r->header('Location') =~ /id=(.*)/)[0] // ''
                               : undef;
}


sub counter {
    my ($name) = @_;
    return $t->status() =~ /^referral_\Q$name\E (\d+)$/m ? $1 : undef;
}


sub streams {
    opendir(my $dh, $journal) or die "$journal: $!\n";
    return grep { /^[0-9a-f]{32}$/ } readdir($dh);
}


my @accepted;

push @accepted, click() for 1 .. 20;

is(scalar(grep { /^[0-9a-f-]{36}$/ } @accepted), 20, 'each click has an id');
ok($t->wait_for(sub { return streams() == 2 }, 5), 'a stream for each worker');


sub all_there {
    my ($name) = @_;

    my %have = map { $_->{id} => 1 } $t->records(scalar(@accepted));
    my @lost = grep { !$have{$_} } @accepted;

    is(scalar(@lost), 0, "$name: nothing accepted is lost");
    is(scalar(keys %have), scalar(@accepted), "$name: and nothing doubled");
}


all_there('running');
cmp_ok(counter('journal_records_total'), '>=', 20, 'records are counted');


# reload, restart, kill -9

my %before = map { $_ => 1 } streams();

$t->reload();
push @accepted, click() for 1 .. 10;

ok((grep { !$before{$_} } streams()), 'a reload makes new streams');
all_there('reload');

for my $round (1 .. 3) {
    push @accepted, click() for 1 .. 10;
    $t->kill_worker();
    push @accepted, click() for 1 .. 10;
}

all_there('kill -9 of a worker');

$t->nginx_stop();
$t->nginx_start();
push @accepted, click() for 1 .. 10;

all_there('restart');

# an empty stream is removed by its worker

$t->reconfigure(%conf, workers => 4);
$t->nginx_stop();

my @empty = grep {
    my @segments = glob("$journal/$_/*.seg");
    !@segments;
} streams();

is(scalar(@empty), 0, 'streams without a record do not stay');
all_there('stopped');

$t->nginx_start();


# as Debian runs it: workers are another user, the directory is the group's

SKIP: {
    skip 'needs root', 6 if $> != 0;

    my ($uid, $gid) = (getpwnam('www-data'))[2, 3];
    skip 'needs www-data', 6 unless defined $uid;

    my $shared = $t->dir() . '/shared';

    mkdir($shared) or die "$shared: $!\n";
    chown(0, $gid, $shared);
    chmod(02770, $shared);
    chmod(0755, $t->dir());

    my %shared = (%conf, workers => 1, user => 'www-data',
                  http => 'referral_journal %%DIR%%/shared segment=64k;');

    my $r = $t->nginx_test(%shared);

    is($r->{status}, 0, 'root:www-data 2770 is accepted')
        or diag($r->{output});

    opendir(my $dh, $shared) or die "$shared: $!\n";
    is(join(' ', grep { !/^\.\.?$|\.lock$/ } readdir($dh)), '',
       'nginx -t leaves nothing behind');
    closedir($dh);

    $t->reconfigure(%shared);

    my $id = click();
    like($id, qr/^[0-9a-f-]{36}$/, 'a click is accepted there');

    my @records = $t->records(1, journal => $shared);
    is($records[0]->{id}, $id, 'and recorded');

    my ($stream) = glob("$shared/" . '[0-9a-f]' x 32);
    my @st = stat($stream);

    is($st[4], $uid, 'the stream is the worker\'s');
    is($st[5], $gid, 'and the group\'s');
}


# full: clicks go on without an id, are counted, one log line a second

mkdir("$t->{dir}/small") or die "small: $!\n";

$t->reconfigure(%conf, workers => 1,
    http => 'referral_journal %%DIR%%/small size=256k segment=64k sync=off;');

my ($accepted, $refused) = (0, 0);
my $started = time();

# a slow disk may refuse some between two segments

for (1 .. 10000) {
    my $id = click();

    if ($id ne '') {
        $accepted++;
        next;
    }

    last if ++$refused >= 300 && $t->log() =~ /small" is full: /;
}

cmp_ok($refused, '>=', 300, "the journal is full after $accepted clicks");
cmp_ok($accepted, '>=', 400, 'not before its space is used');

# the record of a page is shorter, a few may still fit

my $page;

for (1 .. 20) {
    $page = $t->get('/?ref=CLICK');
    last if $page->body() eq '';
    $accepted++;
}

is(click(), '', 'a redirect has no click id then');
is($page->body(), '', 'nor a page');
is($page->status(), 200, 'which is served');
cmp_ok(counter('dropped_total{reason="full"}'), '>=', 300,
       'the clicks are counted');

my $lines = () = $t->log() =~ /small" is full or broken, \d+ click/g;

cmp_ok($lines, '>=', 1, 'and logged');
cmp_ok($lines, '<=', time() - $started + 2, 'once a second');

my @small = $t->records(1, journal => $t->dir() . '/small');

is(scalar(@small), $accepted, 'all accepted ones are there');

done_reading("$t->{dir}/small");

ok($t->wait_for(sub { (click() // '') ne '' }, 10),
   'clicks are accepted again when space was freed');
ok($t->wait_for(sub { click(); $t->log() =~ /small" accepts clicks again/ }, 5),
   'which is logged');


# space is freed by whoever has read: here a stream that is final is removed

sub done_reading {
    my ($dir) = @_;

    # a new worker leaves the old stream to us

    for my $segment (sort glob("$dir/*/*.seg")) {
        next if $segment =~ /spare/;
        unlink($segment);
    }
}


# broken: the directory vanishes, and comes back

my $gone = $t->dir() . '/gone';

mkdir($gone) or die "$gone: $!\n";

$t->reconfigure(%conf, workers => 1,
                http => 'referral_journal %%DIR%%/gone segment=64k;');
rename($gone, "$gone.away") or die "$gone: $!\n";
$t->kill_worker();

$t->log_like(qr/clicks are not recorded: .*gone/, 'no directory: logged');
is(click(), '', 'no directory: redirects without an id');
ok($t->wait_for(sub { counter('journal_open_streams') == 0 }, 10),
   'no directory: no stream, when the last old worker is gone');

rename("$gone.away", $gone) or die "$gone: $!\n";

ok($t->wait_for(sub { (click() // '') ne '' }, 15),
   'the directory is back: so are ids');


# verify: a stream of a worker that was killed ends where it ends; a page of
# zeros, as a power loss leaves it, is found before good records

my $verify = $t->referralctl('journal', 'verify', '--journal', $journal);

is($verify->{status}, 0, 'verify finds nothing wrong')
    or diag($verify->{output});

my $lossy = $t->dir() . '/lossy';

mkdir($lossy) or die "$lossy: $!\n";

$t->reconfigure(%conf, workers => 1,
                http => 'referral_journal %%DIR%%/lossy segment=256k;');

my @ids = map { click() } 1 .. 100;

$t->reconfigure(%conf, workers => 1);
$t->wait_for(sub { my @pids = $t->workers(); return @pids == 1; }, 5);

my ($segment) = grep { -s $_ > 12288 && !/spare/ } glob("$lossy/*/*.seg");

open(my $fh, '+<:raw', $segment) or die "$segment: $!\n";
seek($fh, 8192, 0);
print $fh "\0" x 4096;
close($fh);

$verify = $t->referralctl('journal', 'verify', '--journal', $lossy);

is($verify->{status}, 1, 'a zero page: verify says so')
    or diag($verify->{output});

my $export = $t->referralctl('journal', 'export', '--json', '--journal',
                             $lossy);
my %left = map { $_ => 1 } $export->{output} =~ /"id":"([0-9a-f-]{36})"/g;

is($export->{status}, 1, 'a zero page: and so does export');
cmp_ok(scalar(keys %left), '<', 100, 'a zero page: its records are lost');
ok($left{$ids[0]}, 'a zero page: those before it are read');
ok($left{$ids[99]}, 'a zero page: and those after it');


# what nginx -t refuses, as the worker's user would find it

sub refused {
    my ($args, $reason, $name, %more) = @_;

    my $r = $t->nginx_test(%conf, http => "referral_journal $args;", %more);

    isnt($r->{status}, 0, "$name: refused");
    like($r->{output}, $reason, "$name: with the reason");
}


$t->write_file('file', '');

refused('%%DIR%%/none',
        qr{"\S+/none" does not exist.* install -d -m 2770 -o \S+ -g referral},
        'missing');
refused('%%DIR%%/file', qr/"\S+file" is not a directory/, 'a file');
refused('%%DIR%%/journal size=1m segment=256k', 
        qr/size=1048576 is too small, 2 worker.* 262144 bytes .*need 2097152/,
        'size too small');
refused('%%DIR%%/journal size=x', qr/invalid parameter "size=x"/, 'size');
refused('%%DIR%%/journal size=0', qr/invalid parameter "size=0"/, 'size 0');
refused('%%DIR%%/journal segment=100000', qr/"segment=100000" must be a mult/,
        'segment of no page');
refused('%%DIR%%/journal segment=4k', qr/"segment=4k" must be/,
        'segment too small');
refused('%%DIR%%/journal sync=never', qr/invalid parameter "sync=never"/,
        'sync');
refused('%%DIR%%/journal sync=0', qr/invalid parameter "sync=0"/, 'sync 0');
refused('%%DIR%%/journal compress', qr/invalid parameter "compress"/,
        'unknown parameter');
refused('%%DIR%%/journal; referral_journal %%DIR%%/journal',
        qr/"referral_journal" directive is duplicate/, 'twice');
refused('', qr/invalid number of arguments/, 'no path');
refused('/' . 'x' x 4096, qr/too long/, 'a path too long');

SKIP: {
    skip 'needs root', 4 if $> != 0 || !defined getpwnam('www-data');

    my $private = $t->dir() . '/private';

    mkdir($private) or die "$private: $!\n";
    chmod(0700, $private);

    refused('%%DIR%%/private', qr/cannot be written by the worker's user; /,
            'not writable', user => 'www-data');

    # the user may stand after the http block

    (my $globals = $t->expand('%%GLOBALS%%')) =~ s/^\s*user .*//m;

    my $r = $t->nginx_test(conf => $globals . <<'END');
events { }
http {
    referral_zone 1m;
    referral_redis %%REDIS%%;
    referral_journal %%DIR%%/private segment=64k;
    server { listen 127.0.0.1:%%PORT%%; referral on; referral_cookie off; }
}
user www-data;
END

    isnt($r->{status}, 0, 'the user after the http block: refused');
    like($r->{output}, qr/cannot be written by the worker's user/,
         'the user after the http block: with the reason');
}

# proc cannot preallocate, nor be written

refused('/proc/self', qr/"\/proc\/self" .+/, 'a file system that is none');


# a bad one at reload keeps the old configuration

$t->allow(qr/referral_journal/);
my ($worker) = $t->workers();

$t->write_file('nginx.conf', $t->configuration(%conf,
               http => 'referral_journal %%DIR%%/none;'));
kill('HUP', $t->master());

$t->log_like(qr/\[emerg\].*none" does not exist/, 'reload: refused');
is(($t->workers())[0], $worker, 'reload: the old worker goes on');
like(click(), qr/^[0-9a-f-]{36}$/, 'reload: and records');
$t->log_unlike(qr/unknown process/, 'reload: the test\'s child is no stranger');

$t->done();
