package page;

# Copyright (C) The nginx referral module authors
#
# Pages of 4 KB, from a file and from behind a proxy: page.conf with the
# module, with and without "?ref=", and page-off.conf without it.

use strict;
use warnings;


sub run {
    my ($b) = @_;

    $b->codes(1000);
    $b->write_file('html/page.html', 'x' x 4096);

    my $app = $b->nginx('app')->{port};

    mkdir($b->dir() . '/page');
    mkdir($b->dir() . '/page/journal');
    $b->nginx('page', set => { APP => $app });
    $b->nginx('page-off', set => { APP => $app });

    my @none = (pick => 'none');

    $b->note('page: with the module, with ?ref=, without the module');
    $b->measure(
        { name => 'page', nginx => 'page', path => '/page.html', @none },
        { name => 'page_off', nginx => 'page-off', path => '/page.html',
          @none },
        { name => 'page_ref', nginx => 'page', path => '/page.html?ref=' },
        { name => 'proxy', nginx => 'page', path => '/app/page', @none },
        { name => 'proxy_off', nginx => 'page-off', path => '/app/page',
          @none },
        { name => 'proxy_ref', nginx => 'page', path => '/app/page?ref=' });

    $b->set_ratio('param_page', 'page_ref', 'page');
    $b->set_ratio('off_page', 'page', 'page_off');
    $b->set_ratio('param_proxy', 'proxy_ref', 'proxy');
    $b->set_ratio('off_proxy', 'proxy', 'proxy_off');

    $b->end_nginx($_) for qw(page page-off app);
}


1;
