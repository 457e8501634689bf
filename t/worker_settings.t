#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# referral-worker's command line and settings.

use strict;
use warnings;

use Test::More;
use Referral::Test;

my $t = Referral::Test->new();
my $worker = $t->build() . '/referral-worker';
my $good = "journal = /nowhere\npostgres = dbname=x\n";

sub settings {
    my ($text) = @_;
    return $t->run($worker, '-t', '-c', $t->write_file('w.conf', $text));
}

my $r = settings($good);
is($r->{status}, 0, 'the least there must be');
like($r->{output}, qr/w\.conf are ok$/, 'says so');

$r = settings(<<'END');
# a comment
  journal=/var/lib/referral/journal   # another

postgres = host=/run/postgresql dbname=x password='a#b'
batch_rows = 100
batch_wait = 1s
retention = 0
retention_interactions = off
redis = redis://user\@127.0.0.1:6379/1
redis_password_file = /etc/referral/redis.password
publish = off
listen = [::1]:9180
webhook_timeout = 5s
log_level = debug
lock_timeout = 100ms
statement_timeout = 1 h
END
is($r->{status}, 0, 'every setting') or diag($r->{output});

is(settings($good . "listen = $_\n")->{status}, 0, "listen = $_")
    for 'off', '127.0.0.1:9180', 'unix:/run/x', '0.0.0.0:9180 public',
        '[2001:db8::1]:9180 public';

for my $case (
    [ "journal = /x\npostgres = dbname=x\nnonsense = 1\n",
      qr/w\.conf:3: unknown setting "nonsense"/ ],
    [ "journal = /x\n", qr/w\.conf: setting "postgres" is missing/ ],
    [ "postgres = dbname=x\n", qr/w\.conf: setting "journal" is missing/ ],
    [ "\n\njournal\n", qr/w\.conf:3: "journal" is not "name = value"/ ],
    [ "journal = x\n", qr/w\.conf:1: setting "journal" must be an absolute/ ],
    [ "journal = /x\njournal = /y\n",
      qr/w\.conf:2: setting "journal" is there twice/ ],
    [ $good . "redis = localhost\n",
      qr/w\.conf:3: setting "redis" is no address of Redis: / ],
    [ $good . "redis = redis://:geheim\@h:x\n",
      qr/w\.conf:3: setting "redis" is no address of Redis: (?!.*geheim)/ ],
    [ $good . "redis_password_file = x\n",
      qr/setting "redis_password_file" must be an absolute path/ ],
    [ $good . "publish = on\n",
      qr/w\.conf: setting "publish" is on, and setting "redis" is missing/ ],
    [ $good . "publish = yes\n", qr/"publish" must be on, off or auto/ ],
    [ $good . "postgres_x = 1\n", qr/unknown setting "postgres_x"/ ],
    [ "postgres = nonsense=1\n",
      qr/w\.conf:1: setting "postgres" is no connection string/ ],
    [ $good . "batch_rows = 0\n",
      qr/w\.conf:3: setting "batch_rows" must be a number from 1 to 20000/ ],
    [ $good . "batch_rows = -5\n", qr/must be a number/ ],
    [ $good . "batch_rows = 5x\n", qr/must be a number/ ],
    [ $good . "batch_rows = 99999999999999999999\n", qr/must be a number/ ],
    [ $good . "batch_rows =\n", qr/must be a number/ ],
    [ $good . "batch_wait = 250\n",
      qr/setting "batch_wait" must be a time with its unit/ ],
    [ $good . "batch_wait = 1ms\n", qr/from 10ms to 60000ms/ ],
    [ $good . "retention = 99999999999999999d\n", qr/must be a time/ ],
    [ $good . "retention = -1h\n", qr/must be a time/ ],
    [ $good . "retention_interactions = 13\n", qr/must be "N days"/ ],
    [ $good . "retention_interactions = 0 days\n", qr/must be "N days"/ ],
    [ $good . "retention_interactions = 1 day'; DROP\n",
      qr/must be "N days"/ ],
    [ $good . "listen = localhost:9180\n", qr/an address in digits/ ],
    [ $good . "listen = 9180\n", qr/must be "127.0.0.1:PORT"/ ],
    [ $good . "listen = 127.0.0.1:\n", qr/a port from 1 to 65535/ ],
    [ $good . "listen = 127.0.0.1:65536\n", qr/a port from 1 to 65535/ ],
    [ $good . "listen = 127.0.0.1:80 open\n", qr/nothing more but/ ],
    [ $good . "listen = 0.0.0.0:9180\n", qr/open to other machines/ ],
    [ $good . "listen = [::]:9180\n", qr/open to other machines/ ],
    [ $good . "listen = [::1:9180\n", qr/must be "127.0.0.1:PORT"/ ],
    [ $good . "listen = []:9180\n", qr/an address in digits/ ],
    [ $good . "listen = unix:run\n", qr/an absolute path behind "unix:"/ ],
    [ $good . "listen = unix:/" . 'x' x 120 . "\n", qr/too long a path/ ],
    [ $good . "webhook_timeout = 40s\n", qr/from 1000ms to 30000ms/ ],
    [ $good . "log_level = loud\n", qr/must be error, warn, info or debug/ ],
    [ $good . 'x' x 5000 . "\n", qr/w\.conf:3: the line is too long/ ],
    [ "journal = /x\0y\n", qr/w\.conf:1: the line is too long or has a NUL/ ],
) {
    $r = settings($case->[0]);
    is($r->{status}, 1, "refused: $case->[1]");
    like($r->{output}, $case->[1], 'file, line and key');
}

unlike(settings("postgres = host=x passwordd=geheim\n")->{output},
       qr/geheim/, 'no password in a message');

is($t->run($worker)->{status}, 2, 'no -c');
is($t->run($worker, '-x')->{status}, 2, 'an unknown option');
is($t->run($worker, '-c', 'x', 'y')->{status}, 2, 'an argument too many');
is($t->run($worker, '-h')->{status}, 0, '-h');
like($t->run($worker, '-V')->{output}, qr/^referral-worker \d/, '-V');

$r = $t->run($worker, '-c', '/nonexistent');
is($r->{status}, 1, 'no such file');
like($r->{output}, qr{could not open "/nonexistent"}, 'is named');

$t->done();
